// SPDX-License-Identifier: Apache-2.0
//
// The storage under a layer, shared by those who look at the layer. Today it is a local file; an
// NBD export or a Ceph image will be other cases behind this name.

/// What holds the bytes of one layer; closed with the last reference.
public final class LayerFile: Sendable {
  public let file: ImageFile
  /// The name that messages use.
  public let path: String

  public init(_ file: consuming ImageFile, path: String) {
    self.file = file
    self.path = path
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The storage under a layer, shared by those who look at the layer.

import BlockTypes

/// What holds the bytes of one layer; closed with the last reference.
public final class LayerFile: Sendable {
  public let file: LayerStorage
  /// The name that messages use.
  public let path: String
  /// The folder that the file was found in when it was opened, absolute and without links; nil
  /// where nobody asked, or where there is none.
  public let folder: String?

  public init(_ file: consuming ImageFile, path: String, folder: String? = nil) {
    self.file = .local(file)
    self.path = path
    self.folder = folder
  }

  /// - Parameter path: the address, as the user or an image wrote it.
  public init(_ remote: any RemoteStorage, path: String) {
    self.file = .remote(remote)
    self.path = path
    self.folder = nil
  }
}

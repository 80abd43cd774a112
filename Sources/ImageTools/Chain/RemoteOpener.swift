// SPDX-License-Identifier: Apache-2.0
//
// What opens images that are no files of this machine. This module knows no network: whoever may
// use one hands an opener in. This file performs no I/O.

import LinuxIO

/// Opens images by their address, or refuses to.
public protocol RemoteOpener: Sendable {
  /// Whether `name` is an address of this opener's kind; anything else is the name of a file.
  func recognises(_ name: String) -> Bool

  /// Opens the image at `address`.
  ///
  /// - Parameters:
  ///   - overlay: the image that names the address as its backing file, which alone is no reason
  ///     to open it; nil when the user named it.
  ///   - access: what will be done with the image.
  func open(
    _ address: String, namedBy overlay: String?, access: ImageFile.Access
  ) throws(ImageFault) -> LayerFile
}

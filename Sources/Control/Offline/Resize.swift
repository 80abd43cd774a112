// SPDX-License-Identifier: Apache-2.0
//
// Makes the disk of an image that nobody serves larger, by the code that does it for clients. The
// header names the larger size last, so a cut at any moment leaves the old disk or the new one.
// Opens, locks, reads and writes images.

import BlockTypes
import DataPlane
import ImageTools
import LinuxIO

/// Makes disks larger.
public struct Resize {
  public struct Options {
    /// Of the image; nil: its magic says qcow2.
    public var format: ImageFormat?
    public var allowed = AllowedFiles()
    /// The keys of encrypted images.
    public var keys: KeyRing?

    public init() {}
  }

  private let layers: [OpenedLayer]

  /// Gives the image at `path` a disk of the size that `newByteCount` makes of its own, in bytes.
  ///
  /// - Returns: the new size.
  /// - Throws: also when a disk cannot have that size, and then it has the old one.
  public static func run(
    path: String, options: Options, remote: (any RemoteOpener)?,
    newByteCount: (_ oldByteCount: UInt64) -> UInt64
  ) throws(ControlError) -> UInt64 {
    let resize: Resize
    do throws(ImageFault) {
      resize = try Resize(path: path, options: options, remote: remote)
    } catch {
      throw ControlError(error)
    }
    let byteCount = newByteCount(resize.layers[0].diskByteCount)
    try resize.run(path, byteCount)
    return byteCount
  }

  private init(
    path: String, options: Options, remote: (any RemoteOpener)?
  ) throws(ImageFault) {
    var open = OpenChain.Options(detection: .topQcow2, remote: remote)
    open.allowed = options.allowed
    open.keys = options.keys
    open.keepsBitmaps = true
    layers = try OpenChain.open(
      path: path, format: options.format, access: .readWrite, options: open)
    try options.keys?.requireUse(in: layers, mayBeIdle: false)
  }

  private func run(_ path: String, _ byteCount: UInt64) throws(ControlError) {
    var image: OfflineImage
    do {
      image = try OfflineImage(PlanCompiler.offlinePlan(layers))
    } catch {
      throw ControlError(path, "\(error)")
    }
    let refusal = image.grow(to: byteCount)
    // Also after a failure: what the file holds by then is to be a whole image.
    let trouble = image.finish()
    image.close()
    if let refusal { throw ControlError(path, refusal) }
    if let trouble { throw ControlError(path, trouble) }
  }
}

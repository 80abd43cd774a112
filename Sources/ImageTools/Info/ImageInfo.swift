// SPDX-License-Identifier: Apache-2.0
//
// What `info` tells about one image. Reads the header, the snapshot table and the bitmap directory.

import BlockTypes
import Encryption
import LinuxIO
import Qcow2

/// The facts about one image.
public struct ImageInfo: Sendable {
  public let path: String
  public let format: ImageFormat
  public let diskByteCount: UInt64
  /// Bytes that the file occupies; nil when nobody tells.
  public let allocatedByteCount: UInt64?
  /// Whether the image is no file of this machine.
  let isRemote: Bool
  /// nil for a raw image.
  public let header: Header?
  public let snapshots: [SnapshotEntry]
  public let bitmaps: [BitmapEntry]
  /// How the image is encrypted; nil: it is not, or not as we know it.
  public let encryption: LUKSHeader?
  private let encryptionFault: String?

  /// Looks at the image at `path` and, if asked, at everything below it.
  public static func list(
    path: String, format: ImageFormat?, includesBackingChain: Bool, takesLocks: Bool,
    snapshot: String? = nil, allowed: AllowedFiles = AllowedFiles(),
    remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) -> [ImageInfo] {
    var options = OpenChain.Options(
      detection: .all, takesLocks: takesLocks, followsBackingFiles: includesBackingChain,
      requiresSupport: false, snapshot: snapshot, remote: remote)
    options.allowed = allowed
    let layers = try OpenChain.open(
      path: path, format: format, access: .readOnly, options: options)
    var list: [ImageInfo] = []
    for layer in layers { list.append(try ImageInfo(layer)) }
    return list
  }

  init(_ layer: OpenedLayer) throws(ImageFault) {
    let storage = layer.storage
    self.path = layer.path
    self.format = layer.format
    self.diskByteCount = layer.diskByteCount
    self.allocatedByteCount = try storage.allocatedByteCount()
    self.isRemote = storage.file.remote != nil
    self.header = layer.header
    (encryption, encryptionFault) = Self.encryption(layer)
    guard let header = layer.header else {
      self.snapshots = []
      self.bitmaps = []
      return
    }
    let reader = try MetadataReader(storage)
    self.snapshots =
      header.snapshotCount == 0
      ? []
      : try SnapshotTable(
        of: header, fault: { ImageFault(storage.path, $0) },
        read: { (offset, byteCount) throws(ImageFault) in try reader.read(offset, byteCount) }
      ).entries
    self.bitmaps = header.hasPersistentBitmaps ? try Self.bitmaps(header, reader) : []
  }

  /// What is wrong with the encryption is no reason to tell nothing of the image.
  private static func encryption(_ layer: OpenedLayer) -> (header: LUKSHeader?, fault: String?) {
    guard let header = layer.header, header.encryptionMethod == Header.encryptionLUKS else {
      return (nil, nil)
    }
    do throws(ImageFault) {
      let start = try layer.storage.encryptionStart(of: header).header
      do throws(ImageError) {
        _ = try start.specification()
        _ = try start.hash()
        return (start, nil)
      } catch {
        return (start, error.description)
      }
    } catch {
      return (nil, error.cause)
    }
  }

  private static func bitmaps(
    _ header: Header, _ reader: MetadataReader
  ) throws(ImageFault) -> [BitmapEntry] {
    let location: BitmapsExtension?
    do throws(ImageError) {
      location = try header.bitmaps()
    } catch {
      throw ImageFault(reader.storage.path, error)
    }
    guard let location else { return [] }
    let directory = try reader.read(
      location.directoryOffset.byteOffset, Int(location.directoryByteCount))
    do throws(ImageError) {
      return try BitmapEntry.list(decoding: directory, count: location.bitmapCount)
    } catch {
      throw ImageFault(reader.storage.path, error)
    }
  }

  /// Whether the bitmap is usable although it is in use: the image was not closed in order, and
  /// what was kept of it is complete, or wider (decision 24).
  func isRecovered(_ index: Int) -> Bool {
    guard let header, bitmaps[index].isInUse, index < 64 else { return false }
    return header.completeBitmapsMask >> UInt64(index) & 1 == 1
  }

  /// The backing file's path as it will be opened; the bare name where it is not a plain name.
  public var backingPath: String? {
    guard let recorded = header?.backingFile else { return nil }
    let name = BackingName(recorded)
    return name.scheme == nil && !isRemote ? name.path(relativeTo: path) : recorded
  }

  /// Why this program cannot read the image, nil when it can.
  public var refusal: String? {
    do throws(ImageError) {
      try header?.requireSupported(forWriting: false, needsNoKey: true)
      return encryptionFault
    } catch {
      return error.reason
    }
  }
}

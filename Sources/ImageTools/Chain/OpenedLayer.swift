// SPDX-License-Identifier: Apache-2.0
//
// One opened image of a backing chain. Reads the header at the start of the file.

import BlockTypes
import LinuxIO
import Qcow2

/// One image of a backing chain: opened, locked, its header decoded.
public struct OpenedLayer: Sendable {
  public let storage: LayerFile
  /// The external data file; nil when the image holds its data itself, or was only looked at.
  public let dataStorage: LayerFile?
  public let format: ImageFormat
  /// nil for a raw image.
  public let header: Header?
  /// Bytes of the disk that this layer describes; a raw image's size counts whole sectors, as
  /// QEMU's tools report it.
  public let diskByteCount: UInt64
  /// The same, to the byte: what an export of this image offers.
  public let exactDiskByteCount: UInt64

  /// What encrypts the guest's data; nil: nothing does, or no key was wanted.
  public let cipher: (any SectorCipher)?

  /// The path as resolved: what the user named, or the backing name from its image's folder.
  public var path: String { storage.path }

  /// Bytes that are read at first: enough for the header of all images with usual clusters.
  static let probeByteCount = 65_536

  /// Describes a raw image.
  init(raw storage: LayerFile) throws(ImageFault) {
    self.storage = storage
    self.dataStorage = nil
    self.format = .raw
    self.header = nil
    self.cipher = nil
    self.exactDiskByteCount = try storage.byteCount()
    self.diskByteCount = exactDiskByteCount.alignedUp(to: 512)
  }

  /// Describes a qcow2 image with a header that was decoded from this file.
  init(
    qcow2 storage: LayerFile, dataStorage: LayerFile? = nil, header: Header,
    cipher: (any SectorCipher)?
  ) {
    self.cipher = cipher
    self.storage = storage
    self.dataStorage = dataStorage
    self.format = .qcow2
    self.header = header
    self.diskByteCount = header.diskByteCount
    self.exactDiskByteCount = header.diskByteCount
  }

  /// Whether the file starts as a qcow2 image does.
  static func hasQcow2Magic(_ storage: LayerFile) throws(ImageFault) -> Bool {
    Header.hasMagic(try storage.read(at: 0, byteCount: Header.magic.count))
  }

  /// Reads and decodes the header of a qcow2 image.
  public static func readHeader(of storage: LayerFile) throws(ImageFault) -> Header {
    var bytes = try storage.read(at: 0, byteCount: probeByteCount)
    let fileByteCount = try storage.byteCount()
    let clusterByteCount: Int
    do throws(ImageError) {
      clusterByteCount = try Header.clusterByteCount(peeking: bytes)
    } catch {
      throw ImageFault(storage.path, error)
    }
    if bytes.count == probeByteCount && bytes.count < clusterByteCount {
      bytes = try storage.read(at: 0, byteCount: clusterByteCount)
    }
    bytes.removeLast(max(0, bytes.count - clusterByteCount))
    do throws(ImageError) {
      return try Header(decoding: bytes, fileByteCount: fileByteCount)
    } catch {
      throw ImageFault(storage.path, error)
    }
  }
}

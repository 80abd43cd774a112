// SPDX-License-Identifier: Apache-2.0
//
// One image of the chain as the data plane uses it: its L1 table in memory, its file by index.
// Spec: qcow2.rst, "Cluster mapping".

import BlockTypes
import Compression
import LinuxIO
import Qcow2

/// A layer of the chain. Index 0 is the active layer.
struct Layer: ~Copyable {
  let isRaw: Bool
  let file: Int
  /// The file that holds guest data; `file` unless the image has an external data file, in which
  /// guest clusters lie at their own guest offsets and nothing is counted.
  let dataFile: Int
  /// The data file reads as a raw image, so zeroes have to be in it.
  let dataIsRaw: Bool
  /// What encrypts the guest's data, by its number in the disk queue; -1: nothing does.
  let cipher: Int32
  /// The active layer may grow (Resize.swift).
  var diskByteCount: UInt64
  let version: Int
  var hasSnapshots: Bool
  /// How compressed clusters are packed.
  let codec: ClusterCodec
  let geometry: ClusterGeometry
  var l1TableOffset: UInt64
  /// The L1 table in host byte order; empty for a raw layer.
  var l1: FixedArray<UInt64>

  var hasDataFile: Bool { dataFile != file }

  /// A layer whose L1 table, read before, is `table`.
  init(_ plan: LayerPlan, file: Int, dataFile: Int, cipher: Int32, l1 table: [UInt64]) {
    self.file = file
    self.dataFile = dataFile
    self.cipher = cipher
    diskByteCount = plan.diskByteCount
    switch plan.format {
    case .raw:
      isRaw = true
      version = 0
      hasSnapshots = false
      dataIsRaw = false
      codec = .deflate
      geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
      l1TableOffset = 0
    case .qcow2(let header):
      isRaw = false
      version = header.version
      hasSnapshots = header.snapshotCount > 0
      dataIsRaw = header.autoclearFeatures.contains(.rawExternalData)
      guard let codec = ClusterCodec(rawValue: header.compressionType) else {
        preconditionFailure("an image with an unknown compression was opened")
      }
      self.codec = codec
      geometry = header.geometry
      l1TableOffset = header.l1TableOffset.byteOffset
    }
    l1 = FixedArray(count: table.count) { table[$0] }
  }
}

extension LayerPlan {
  /// Throws when the guest's data is encrypted and there is nothing to decrypt it.
  func requireCipher() throws(ImageError) {
    guard case .qcow2(let header) = format, header.encryptionMethod != 0, cipher == nil else {
      return
    }
    throw ImageError(.refused, "\(storage.path) is encrypted, and there is no key for it")
  }

  /// Reads the L1 table, which the data plane keeps whole.
  ///
  /// - Throws: `ImageError` when it cannot be read whole.
  func readL1Table() throws(ImageError) -> [UInt64] {
    guard case .qcow2(let header) = format else { return [] }
    return try readTable(
      at: header.l1TableOffset, entryCount: header.l1EntryCount, what: "the L1 table")
  }

  /// Reads the refcount table, which the data plane keeps whole for the active layer.
  func readRefcountTable() throws(ImageError) -> [UInt64] {
    guard case .qcow2(let header) = format else { return [] }
    return try readTable(
      at: header.refcountTableOffset,
      entryCount: header.refcountTableClusterCount * header.geometry.tableWordCount,
      what: "the refcount table")
  }

  /// Reads the snapshot table, which the data plane only tells of; nil when it cannot be read.
  func readSnapshots() -> SnapshotTable? {
    guard case .qcow2(let header) = format else { return SnapshotTable(entries: []) }
    do throws(ImageError) {
      return try SnapshotTable(
        of: header, fault: { $0 },
        read: { (offset, byteCount) throws(ImageError) in
          do throws(SystemError) {
            return try storage.file.read(at: offset, byteCount: byteCount)
          } catch {
            throw ImageError(.corrupt, "the snapshot table cannot be read: \(error)")
          }
        })
    } catch {
      return nil
    }
  }

  private func readTable(
    at offset: HostOffset, entryCount: Int, what: String
  ) throws(ImageError) -> [UInt64] {
    let bytes: [UInt8]
    do throws(SystemError) {
      bytes = try storage.file.read(at: offset.byteOffset, byteCount: entryCount * 8)
    } catch {
      throw ImageError(.corrupt, "\(what) cannot be read: \(error)", at: offset)
    }
    guard bytes.count == entryCount * 8 else {
      throw ImageError(.truncated, "\(what) passes the end of the file", at: offset)
    }
    return (0..<entryCount).map { bytes.loadBigEndian(UInt64.self, at: $0 * 8) }
  }
}

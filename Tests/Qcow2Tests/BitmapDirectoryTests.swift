// SPDX-License-Identifier: Apache-2.0
//
// The directory of persistent bitmaps and what the header says of it.
// Spec: qcow2.rst, "Bitmaps extension", "Bitmap directory", "Bitmap table".

import BlockTypes
import Testing

@testable import Qcow2

private let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4)

private func entry(
  _ name: String = "b0", granularityBits: Int = 16, table: UInt64 = 0x50000, count: Int = 1,
  flags: UInt32 = BitmapEntry.autoFlag
) -> BitmapEntry {
  BitmapEntry(
    name: name, granularityBits: granularityBits, tableOffset: HostOffset(byteOffset: table),
    tableEntryCount: count, flags: flags)
}

/// An entry with other bytes in some of its fields.
private func patched(_ place: Int, _ bytes: UInt8...) throws -> BitmapEntry {
  var directory = entry().bytes
  directory.replaceSubrange(place..<place + bytes.count, with: bytes)
  return try #require(try BitmapEntry.list(decoding: directory, count: 1).first)
}

private func reason(_ entry: BitmapEntry, _ diskByteCount: UInt64 = 1 << 20) -> String? {
  entry.unusableReason(in: geometry, diskByteCount: diskByteCount)
}

@Suite struct `The bitmap directory` {
  @Test func `is what QEMU writes`() {
    #expect(
      entry().bytes == [
        0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, 2, 0, 0, 0, 0, 0x62, 0x30, 0, 0,
        0, 0, 0, 0,
      ])
  }

  @Test func `comes back byte by byte, with extra data and padding`() throws {
    var extra = Array(entry("name").bytes.prefix(24))
    extra.replaceSubrange(20..<24, with: [0, 0, 0, 3])
    extra += [7, 8, 9] + Array("name".utf8) + [0xee]
    let directory = entry("first").bytes + extra + entry("last").bytes
    let entries = try BitmapEntry.list(decoding: directory, count: 3)
    #expect(entries.map(\.name) == ["first", "name", "last"])
    #expect(entries.flatMap(\.bytes) == directory)
  }

  @Test func `is damaged when it ends inside an entry, at whatever byte`() {
    let directory = entry("first").bytes + entry("second").bytes
    for count in 0..<directory.count {
      #expect(throws: ImageError.self) {
        try BitmapEntry.list(decoding: Array(directory.prefix(count)), count: 2)
      }
    }
  }

  @Test func `has bitmaps that can be used`() throws {
    #expect(reason(entry()) == nil)
    #expect(reason(entry(flags: 0)) == nil)
    #expect(reason(entry(granularityBits: 9)) == nil)
    #expect(reason(entry(granularityBits: 31)) == nil)
    // What is unknown may be used where the entry says so.
    #expect(reason(try patched(15, 0b110)) == nil)
    // The table of a bitmap in use may be larger than needed.
    #expect(reason(entry(count: 2, flags: BitmapEntry.inUseFlag)) == nil)
  }

  @Test func `has bitmaps that are only kept, each for its reason`() throws {
    #expect(reason(try patched(15, 0b1010))?.contains("flags") == true)
    #expect(reason(try patched(16, 2))?.contains("type") == true)
    #expect(reason(entry(granularityBits: 8))?.contains("granularity") == true)
    #expect(reason(entry(granularityBits: 32))?.contains("granularity") == true)
    #expect(reason(entry(table: 0x50200))?.contains("table") == true)
    #expect(reason(entry(table: 0))?.contains("table") == true)
    #expect(reason(entry(count: 0))?.contains("table") == true)
    #expect(reason(entry(count: 2))?.contains("2 entries") == true)
    #expect(reason(entry(), 1 << 40)?.contains("1 entries") == true)
    #expect(reason(entry(count: 8_193))?.contains("512 MiB") == true)
    #expect(reason(try patched(24, 0xff, 0xff))?.contains("name") == true)
  }

  @Test func `has a table entry for each cluster of bits`() {
    let full: UInt64 = 524_288 << 16
    #expect(geometry.bitmapTableEntryCount(1, granularityBits: 16) == 1)
    #expect(geometry.bitmapTableEntryCount(full, granularityBits: 16) == 1)
    #expect(geometry.bitmapTableEntryCount(full + 1, granularityBits: 16) == 2)
  }

  @Test func `leads to tables whose entries are data, zeroes or ones`() {
    func kind(_ word: UInt64) -> BitmapTableEntry {
      BitmapTableEntry(rawValue: word, geometry: geometry)
    }
    #expect(kind(0) == .zeroes)
    #expect(kind(1) == .ones)
    #expect(kind(0x30000) == .data(HostOffset(byteOffset: 0x30000)))
    for word: UInt64 in [0x30001, 0x30200, 2, 1 << 56 | 0x30000, 1 << 63] {
      #expect(kind(word) == .invalid)
    }
  }
}

@Suite struct `A header with bitmaps` {
  private static let directory = BitmapsExtension(
    bitmapCount: 3, directoryByteCount: 96, directoryOffset: HostOffset(byteOffset: 0x70000))

  @Test func `names the directory and what is complete`() throws {
    let old = try HeaderBytes.version3.decode()
    var header = old
    header.setBitmaps(Self.directory, completeMask: 0b101)
    let rewrite = try HeaderRewrite(of: HeaderBytes.version3.bytes, to: header)
    let last = try #require(rewrite.stages.last)
    let read = try Header(decoding: last, fileByteCount: Header.fileByteCountMax)
    #expect(try read.bitmaps() == Self.directory)
    #expect(read.hasPersistentBitmaps)
    #expect(read.completeBitmapsMask == 0b101)
    #expect(read.featureNames.contains { $0.field == .autoclear && $0.bit == 58 })
  }

  @Test func `says nothing of complete ones once a foreign writer has cleared the bit`() throws {
    var header = try HeaderBytes.version3.decode()
    header.setBitmaps(Self.directory, completeMask: 0b111)
    header.autoclearFeatures = .bitmaps
    #expect(header.completeBitmapsMask == 0)
  }

  @Test func `takes the mask out of force with one sector`() throws {
    var header = try HeaderBytes.version3.decode()
    header.setBitmaps(Self.directory, completeMask: 1)
    let bytes = try #require(
      try HeaderRewrite(of: HeaderBytes.version3.bytes, to: header).stages.last)
    header.setBitmaps(Self.directory, completeMask: nil)
    let stages = try HeaderRewrite(of: bytes, to: header).stages
    #expect(stages.count == 1)
    let changed = HeaderRewrite.changedBlocks(from: bytes, to: stages[0], blockByteCount: 512)
    #expect(changed == [0..<512])
  }

  @Test func `forgets all of them with the last one`() throws {
    var header = try HeaderBytes.version3.decode()
    header.setBitmaps(Self.directory, completeMask: 1)
    header.setBitmaps(nil, completeMask: 0)
    #expect(!header.hasPersistentBitmaps)
    #expect(try header.bitmaps() == nil)
    #expect(header.autoclearFeatures.isEmpty)
  }
}

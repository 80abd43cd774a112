// SPDX-License-Identifier: Apache-2.0
//
// Changing a header on disk: what is kept, and what a torn write leaves. Spec: qcow2.rst, "Header",
// "Header extensions"; users.md 1.3, rows 7, 14 and 15.

import BlockTypes
import Qcow2
import Testing

@Suite struct `A rewritten header` {
  /// Fields, an extension and feature bits that nobody knows, and a backing file.
  private static var strange: HeaderBytes {
    var header = HeaderBytes.overlay.with(UInt64(0xff01), at: 80).with(UInt64(0xf0), at: 88)
    header.bytes.put(UInt32(0), at: 12)
    header.bytes.put(UInt32(0x300), at: 12)
    header.bytes.replaceSubrange(0x210..<0x218, with: [UInt8](repeating: 0, count: 8))
    header.bytes.put(UInt32(0x1234_5678), at: 520)
    header.bytes.put(UInt32(3), at: 524)
    header.bytes.replaceSubrange(528..<531, with: [9, 8, 7])
    header.bytes.replaceSubrange(0x300..<0x308, with: Array("t2.qcow2".utf8))
    header.bytes.replaceSubrange(105..<112, with: [1, 2, 3, 4, 5, 6, 7])
    return header
  }

  @Test func `changes no byte but those of the fields`() throws {
    let old = Self.strange
    var header = try old.decode()
    header.diskByteCount = 2 << 30
    header.incompatibleFeatures.insert(.dirty)
    let rewrite = try HeaderRewrite(of: old.bytes, to: header)
    #expect(rewrite.stages == [old.with(UInt64(2 << 30), at: 24).with(UInt64(1), at: 72).bytes])
  }

  @Test func `of version 2 gets no fields of version 3`() throws {
    var old = HeaderBytes.version2
    old.bytes.put(UInt32(0x1234_5678), at: 72)
    old.bytes.put(UInt32(3), at: 76)
    old.bytes.replaceSubrange(80..<83, with: [9, 8, 7])
    var header = try old.decode()
    header.snapshotCount = 1
    header.snapshotTableOffset = HostOffset(byteOffset: 0x1_0000)
    let rewrite = try HeaderRewrite(of: old.bytes, to: header)
    #expect(rewrite.stages == [old.with(UInt32(1), at: 60).with(UInt64(0x1_0000), at: 64).bytes])
  }

  @Test func `that did not change is one stage that changes nothing`() throws {
    let old = Self.strange
    #expect(try HeaderRewrite(of: old.bytes, to: old.decode()).stages == [old.bytes])
  }

  @Test(arguments: [HeaderBytes.version2, .version3, .overlay, strange])
  func `with a new extension or name is at any cut the old one or the new one`(
    _ old: HeaderBytes
  ) throws {
    var header = try old.decode()
    header.replaceExtension(HeaderExtension.bitmapsType, with: [UInt8](repeating: 1, count: 24))
    try expectWholeAtAnyCut(old.bytes, header, old.fileByteCount)
    header.backingFile = "/srv/" + String(repeating: "b", count: 900)
    header.backingFormat = "raw"
    try expectWholeAtAnyCut(old.bytes, header, old.fileByteCount)
    header.backingFile = nil
    header.backingFormat = nil
    try expectWholeAtAnyCut(old.bytes, header, old.fileByteCount)
  }

  @Test func `comes back to what it was, however often it changes`() throws {
    var bytes = HeaderBytes.overlay.bytes
    let fileByteCount = HeaderBytes.overlay.fileByteCount
    let first = try HeaderBytes.overlay.decode()
    for round in 0..<200 {
      var header = try Header(decoding: bytes, fileByteCount: fileByteCount)
      header.replaceExtension(
        HeaderExtension.bitmapsType,
        with: round % 2 == 0 ? [UInt8](repeating: 1, count: 24) : nil)
      header.backingFile = round % 2 == 0 ? "other" : "t2.qcow2"
      bytes = try #require(HeaderRewrite(of: bytes, to: header).stages.last)
    }
    #expect(try Header(decoding: bytes, fileByteCount: fileByteCount) == first)
    #expect(bytes[4096...].allSatisfy { $0 == 0 })
  }

  @Test func `that does not fit in its cluster is refused`() throws {
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: 4)
    var header = Header(version: 3, geometry: geometry, diskByteCount: 1 << 20)
    header.l1TableOffset = HostOffset(byteOffset: 512)
    header.refcountTableOffset = HostOffset(byteOffset: 1024)
    header.refcountTableClusterCount = 1
    let old = try header.encode()
    header.backingFile = String(repeating: "b", count: 500)
    #expect(throws: ImageError.self) { try HeaderRewrite(of: old, to: header) }
  }

  /// Each stage is cut after any number of its sectors, in both directions.
  private func expectWholeAtAnyCut(
    _ old: [UInt8], _ new: Header, _ fileByteCount: UInt64
  ) throws {
    let oldHeader = try Header(decoding: old, fileByteCount: fileByteCount)
    var before = old
    for stage in try HeaderRewrite(of: old, to: new).stages {
      for sector in 0...(4096 / 512) {
        for state in [
          Array(stage[..<(sector * 512)] + before[(sector * 512)...]),
          Array(before[..<(sector * 512)] + stage[(sector * 512)...]),
        ] {
          let read = try Header(decoding: state, fileByteCount: fileByteCount)
          #expect([oldHeader, new].contains { withoutNames(read) == withoutNames($0) })
        }
      }
      before = stage
    }
    #expect(try Header(decoding: before, fileByteCount: fileByteCount) == new)
  }

  /// The table of names serves messages only and may come back last.
  private func withoutNames(_ header: Header) -> Header {
    var header = header
    header.extensions.removeAll { $0.type == HeaderExtension.featureNamesType }
    return header
  }
}

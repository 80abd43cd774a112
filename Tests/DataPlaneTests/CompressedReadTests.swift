// SPDX-License-Identifier: Apache-2.0
//
// Reading compressed clusters, whole ones and those that lead where none can be.
// Spec: qcow2.rst, "Compressed Clusters Descriptor"; security.md 2.3.

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

private let compressions = ["zlib", "zstd"]

extension TemporaryFolder {
  /// "disk": a disk of 1 MiB full of `pattern`, all of it compressed.
  fileprivate func makeCompressed(_ compression: String, clusterSize: String = "64k") throws {
    try makeRaw("plain", byteCount: 1 << 20)
    try qemu(
      "qemu-img convert -c -f raw -O qcow2 -o "
        + "compression_type=\(compression),cluster_size=\(clusterSize) @plain @disk")
  }
}

@Suite struct `A compressed cluster` {
  @Test(arguments: compressions, ["512", "4k", "64k", "2M"])
  func `reads as it was written, in parts and whole`(
    compression: String, clusterSize: String
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeCompressed(compression, clusterSize: clusterSize)
    let bench = try ImageBench(folder, "disk", isReadOnly: true)
    #expect(try bench.read(0, 1 << 20) == pattern(1 << 20))
    #expect(try bench.read(65_000, 1_000) == Array(pattern(1 << 20)[65_000..<66_000]))
  }

  @Test(arguments: compressions)
  func `of a base shows through, and is never changed`(compression: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeCompressed(compression)
    try folder.qemu("qemu-img create -q -f qcow2 -b @disk -F qcow2 @top")
    let before = try Data(contentsOf: URL(fileURLWithPath: folder.path("disk")))
    let bench = try ImageBench(folder, "top")
    #expect(try bench.write(pattern(100, seed: 9), 70_000) == .none)
    let expected = overlay(pattern(1 << 20), at: 70_000, with: pattern(100, seed: 9))
    #expect(try bench.read(0, 1 << 20) == expected)
    try bench.settle()
    #expect(try bench.check().isClean)
    #expect(try Data(contentsOf: URL(fileURLWithPath: folder.path("disk"))) == before)
  }

  /// Byte offset and further sectors of a descriptor with clusters of 64 KiB, and what is wrong.
  static let strayPlaces: [(offset: UInt64, sectors: UInt64, what: String)] = [
    (0, 0, "the header"), (512, 127, "inside the header's cluster"),
    (1 << 30, 0, "past the end of the file"), (1 << 53, 127, "as far as a descriptor reaches"),
  ]

  @Test(arguments: strayPlaces)
  func `that leads where none can be fails, and the others go on`(
    _ place: (offset: UInt64, sectors: UInt64, what: String)
  ) throws {
    let folder = try TemporaryFolder()
    try folder.makeCompressed("zlib")
    try folder.patchFirstL2Entry("disk", 1 << 62 | place.sectors << 54 | place.offset)
    let bench = try ImageBench(folder, "disk", isReadOnly: true)
    #expect(try bench.readError(0, 512) == .io)
    #expect(try bench.read(65_536, 512) == Array(pattern(1 << 20)[65_536..<66_048]))
  }

  @Test(arguments: compressions)
  func `that crosses the end of the file fails`(compression: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeCompressed(compression)
    let bench = try ImageBench(folder, "disk", isReadOnly: true)
    guard case .compressed(_, let entry, _) = try bench.resolved(at: 983_040) else {
      throw BenchError("the last cluster is not compressed")
    }
    let start = entry.compressedRange(in: bench.image.layers[0].geometry).start
    truncate(folder.path("disk"), Int(start) + 100)
    let cut = try ImageBench(folder, "disk", isReadOnly: true)
    #expect(try cut.readError(983_040, 512) == .io)
    #expect(try cut.read(0, 512) == Array(pattern(512)))
  }

  @Test(arguments: compressions)
  func `whose bytes were damaged fails`(compression: String) throws {
    let folder = try TemporaryFolder()
    try folder.makeCompressed(compression)
    let bench = try ImageBench(folder, "disk", isReadOnly: true)
    guard case .compressed(_, let entry, _) = try bench.resolved(at: 0) else {
      throw BenchError("the first cluster is not compressed")
    }
    let start = entry.compressedRange(in: bench.image.layers[0].geometry).start
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: folder.path("disk")))
    try file.seek(toOffset: start)
    try file.write(contentsOf: Data(repeating: 0xff, count: 16))
    try file.close()
    let damaged = try ImageBench(folder, "disk", isReadOnly: true)
    #expect(try damaged.readError(0, 512) == .io)
  }
}

extension ImageBench {
  fileprivate func resolved(at offset: UInt64) throws -> Resolution {
    _ = try read(offset, 1)  // so that the table is in memory
    return image.resolve(offset, offset + 1)
  }
}

extension TemporaryFolder {
  fileprivate func patchFirstL2Entry(_ name: String, _ value: UInt64) throws {
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: path(name)))
    func word(_ offset: UInt64) throws -> UInt64 {
      try file.seek(toOffset: offset)
      return try file.read(upToCount: 8)?.reduce(0) { $0 << 8 | UInt64($1) } ?? 0
    }
    let table = try word(try word(40)) & 0x00ff_ffff_ffff_fe00
    try file.seek(toOffset: table)
    try file.write(contentsOf: Data(wire(value)))
    try file.close()
  }
}

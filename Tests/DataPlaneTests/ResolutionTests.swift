// SPDX-License-Identifier: Apache-2.0
//
// Who owns a guest range, over small images that QEMU's tools made. Spec: qcow2.rst, "Cluster
// mapping", "Standard Cluster Descriptor", "Compressed Clusters Descriptor".

import Foundation
import LinuxIO
import Qcow2
import TestSupport
import Testing

@testable import DataPlane

private let cluster: UInt64 = 65_536

extension ImageBench {
  /// Asks layer by layer and says the answer in words, with the tables in memory: `data 0 8000`,
  /// `zero 1 4000`, `zero 0 4000 provisioned`, `zero - 4000`, `compressed 1 4000`, `damaged`.
  fileprivate func resolution(_ start: UInt64, _ end: UInt64) -> String {
    for _ in 0..<20 {
      let resolution = image.resolveByLayers(start, end)
      guard case .needsTable(let layer, let pageOffset, let l1Index) = resolution else {
        return resolution.words
      }
      load(layer, pageOffset, l1Index)
    }
    return "needs tables without end"
  }

  private func load(_ layer: Int, _ pageOffset: UInt64, _ l1Index: Int) {
    guard let page = image.insertPage(layer, pageOffset, .l2, l1Index) else { return }
    let byteCount = image.layers[layer].geometry.pageByteCount
    let piece = DiskQueue.Piece(image.cache.pages[page].buffer, 0, byteCount)
    _ = image.disks.readNow(file: layer, at: pageOffset, piece)
    image.cache.pages[page].state = .ready
  }
}

extension Resolution {
  /// The answer without the place in the file.
  var words: String {
    switch self {
    case .data(let layer, _, let byteCount): return "data \(layer) \(byteCount)"
    case .zero(let layer, let byteCount, let isProvisioned):
      let owner = layer.map(String.init) ?? "-"
      return "zero \(owner) \(byteCount)\(isProvisioned ? " provisioned" : "")"
    case .compressed(let layer, _, let byteCount): return "compressed \(layer) \(byteCount)"
    case .damaged: return "damaged"
    case .needsTable: return "needs a table"
    case .needsIndex: return "needs the index"
    }
  }
}

@Suite struct `A guest range resolves to` {
  @Test func `a raw base as far as the base goes, then to zeroes of the base`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 100_000, byteCount: 1 << 20)
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "data 1 100000")
    #expect(bench.resolution(99_999, 1 << 20) == "data 1 1")
    #expect(bench.resolution(100_000, 1 << 20) == "zero 1 \((1 << 20) - 100_000)")
  }

  @Test func `subclusters where L2 entries tell of them`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(options: "extended_l2=on")
    try folder.qemuIO(
      "disk", "write -P 7 4k 2k", "write -z 8k 2k", "write -P 8 128k 67k", "write -z 256k 64k",
      "write -c -P 9 512k 64k")
    let bench = try ImageBench(folder, "disk", isReadOnly: true)
    var found: [String] = []
    for start: UInt64 in [0, 4096, 6144, 8192, 10_240, 132_000, 200_704, 262_144, 525_000] {
      found.append(bench.resolution(start, 1 << 20))
    }
    #expect(
      found == [
        "data 1 4096", "data 0 2048", "data 1 2048", "zero 0 2048 provisioned", "data 1 120832",
        "data 0 68704", "data 1 61440", "zero 0 65536", "compressed 0 64824",
      ])
    var expected = pattern(1 << 20)
    let written: [(Int, Int, UInt8)] = [
      (4096, 2048, 7), (8192, 2048, 0), (131_072, 68_608, 8), (262_144, 65_536, 0),
      (524_288, 65_536, 9),
    ]
    for (start, count, byte) in written {
      expected = overlay(expected, at: start, with: [UInt8](repeating: byte, count: count))
    }
    #expect(try bench.read(0, 1 << 20) == expected)
    #expect(try bench.read(6000, 3000) == Array(expected[6000..<9000]))
  }

  @Test func `nothing past the overlay's end when the base is longer`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay(baseByteCount: 1 << 20, byteCount: 200_704)
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "data 1 200704")
    #expect(bench.resolution(200_704, 1 << 20) == "zero 0 \((1 << 20) - 200_704)")
    #expect(try bench.read(200_704 - 512, 512) == Array(pattern(1 << 20)[200_192..<200_704]))
  }

  @Test func `the active layer where it has data, and no cluster further`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    try folder.qemuIO("disk", "write -P 7 128k 64k")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "data 1 \(2 * cluster)")
    #expect(bench.resolution(2 * cluster, 1 << 20) == "data 0 \(cluster)")
    #expect(bench.resolution(2 * cluster + 100, 1 << 20) == "data 0 \(cluster - 100)")
    #expect(bench.resolution(3 * cluster, 1 << 20) == "data 1 \((1 << 20) - 3 * cluster)")
  }

  @Test func `one run where neighbours in the disk are neighbours in the file`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 192k", "write -P 8 320k 64k", "write -P 9 256k 64k")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "data 0 \(3 * cluster)")
    // Written in the other order, so their places are not one behind the other.
    #expect(bench.resolution(4 * cluster, 1 << 20) == "data 0 \(cluster)")
  }

  @Test func `zeroes of the layer that has a zero cluster, whatever lies below`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    try folder.qemuIO("disk", "write -z -u 64k 128k")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(cluster, 1 << 20) == "zero 0 \(2 * cluster)")
    #expect(try bench.read(cluster, Int(2 * cluster)) == zeroes(Int(2 * cluster)))
  }

  @Test func `provisioned zeroes where a zero cluster keeps its place`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 128k", "write -z 0 64k")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "zero 0 65536 provisioned")
    #expect(bench.resolution(cluster, 1 << 20) == "data 0 65536")
  }

  @Test func `data where all was preallocated`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o preallocation=metadata @disk 1M")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "data 0 \(1 << 20)")
    #expect(try bench.read(0, 4_096) == zeroes(4_096))
  }

  @Test func `nobody where no layer has anything`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 @disk 1M")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "zero - \(1 << 20)")
  }

  @Test func `one compressed cluster at a time`() throws {
    let folder = try TemporaryFolder()
    try folder.makeRaw("plain", byteCount: 1 << 20)
    try folder.qemu("qemu-img convert -c -f raw -O qcow2 @plain @disk")
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "compressed 0 65536")
    #expect(bench.resolution(cluster + 1, 1 << 20) == "compressed 0 65535")
    #expect(try bench.read(0, 1 << 20) == pattern(1 << 20))
  }

  @Test func `the middle of three layers where only that has data`() throws {
    let folder = try TemporaryFolder()
    try folder.makeOverlay()
    try folder.qemuIO("disk", "write -P 7 64k 64k")
    try folder.qemu("qemu-img create -q -f qcow2 -b @disk -F qcow2 @top")
    let bench = try ImageBench(folder, "top")
    #expect(bench.resolution(0, 1 << 20) == "data 2 65536")
    #expect(bench.resolution(cluster, 1 << 20) == "data 1 65536")
    #expect(try bench.read(cluster, 4) == [7, 7, 7, 7])
  }

  @Test(arguments: [
    (UInt64(1) << 56, "a reserved bit"), (512, "an unaligned place"), (1, "COPIED without a place"),
  ])
  func `damage where an L2 entry makes no sense`(bits: UInt64, what: String) throws {
    let folder = try TemporaryFolder()
    // Version 2 has no zero flag, so bit 0 is damage there as well.
    try folder.qemu("qemu-img create -q -f qcow2 -o compat=0.10 @disk 1M")
    try folder.qemuIO("disk", "write -P 7 0 64k", "write -P 8 64k 64k")
    try folder.patch("disk", firstL2Entry: { $0 ^ bits })
    let bench = try ImageBench(folder, "disk")
    #expect(bench.resolution(0, 1 << 20) == "damaged", "\(what)")
    #expect(try bench.readError(0, 512) == .io)
    #expect(try bench.write([1], 0) == .io)
    #expect(try bench.read(cluster, 4) == [8, 8, 8, 8], "its neighbour is still there")
  }
}

extension TemporaryFolder {
  /// Changes the first L2 entry of an image whose first L1 entry is in use.
  func patch(_ name: String, firstL2Entry change: (UInt64) -> UInt64) throws {
    let image = try FileHandle(forUpdating: URL(fileURLWithPath: path(name)))
    func word(at offset: UInt64) throws -> UInt64 {
      try image.seek(toOffset: offset)
      return try image.read(upToCount: 8)?.reduce(0) { $0 << 8 | UInt64($1) } ?? 0
    }
    let table = try word(at: try word(at: 40)) & 0x00ff_ffff_ffff_fe00
    let entry = change(try word(at: table))
    try image.seek(toOffset: table)
    try image.write(contentsOf: Data(wire(entry)))
    try image.close()
  }
}

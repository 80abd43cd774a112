// SPDX-License-Identifier: Apache-2.0
//
// A disk of a pebibyte in a sparse image: made, written at its ends over NBD, mapped, checked and
// served again, in memory that the L1 table sets and not the disk.
// Sources: reference "qcow2.md", 4.1 (size, l1_size); strata(1); stratad(8).

import Foundation
import TestSupport
import Testing

private let pebibyte: UInt64 = 1 << 50
private let pieceByteCount = 65_536

@Suite(.serialized) struct `A disk of a pebibyte` {
  /// Options of the image, and the memory in KiB that its server may take: the L1 table has 16 MiB
  /// at 64 KiB, twice that with subclusters, and next to nothing at 2 MiB.
  static let shapes: [(options: String, kibibytesMax: Int)] = [
    ("cluster_size=64k", 72 << 10), ("cluster_size=64k,extended_l2=on", 112 << 10),
    ("cluster_size=2M,refcount_bits=1", 40 << 10), ("cluster_size=2M,extended_l2=on", 40 << 10),
  ]

  /// Places at the ends of the disk and of what an L2 table maps, each with a byte of its own.
  static let pieces: [(offset: UInt64, byte: UInt8)] = [
    (0, 1), (pebibyte / 2 - UInt64(pieceByteCount), 2), (pebibyte / 2, 3),
    (pebibyte - UInt64(pieceByteCount), 4),
  ]

  @Test(arguments: shapes)
  func `is made, written at its ends, mapped, checked and served in little memory`(
    _ shape: (options: String, kibibytesMax: Int)
  ) throws {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    try limited("create", "-q", "-f", "qcow2", "-o", shape.options, image, "1P")
    for isFirst in [true, false] {
      let server = try ServedProcess(stratad: [image, "--socket", fixture.socket])
        .waitUntilReady()
      let client = try WireClient.entered(path: fixture.socket, contexts: ["base:allocation"])
      #expect(client.size == pebibyte)
      if isFirst { try write(client) }
      try read(client)
      let peak = try Int(server.status(of: "VmHWM").prefix { $0.isNumber }) ?? 0
      #expect((1...shape.kibibytesMax).contains(peak), "\(shape.options): \(peak) KiB")
      try client.disconnect()
      #expect(server.stop() == 0)
    }
    let map = try limited("map", "--output=json", image)
    let found = map.split(separator: "\n").filter { $0.contains("\"data\": true") }.map {
      UInt64($0.split(separator: ",")[0].filter(\.isNumber)) ?? 1
    }
    let cluster: UInt64 = shape.options.contains("2M") ? 2 << 20 : 64 << 10
    let unit = shape.options.contains("extended") ? cluster / 32 : cluster
    // The two in the middle are one run where a cluster does not end between them.
    let expected = Self.pieces.map { $0.offset / unit * unit }
    #expect(Set(found).isSubset(of: expected) && found.first == 0, "\(map)")
    #expect(found.last == expected.last, "\(map)")
    try limited("info", image)
    try limited("check", image)
    let verdict = try runTool("qemu-img", "check", image)
    #expect(verdict.code == 0, "\(verdict)")
    for piece in Self.pieces {
      let result = try runTool(
        "qemu-io", "-f", "qcow2", "-r", "-c",
        "read -P \(piece.byte) \(piece.offset) \(pieceByteCount)", image)
      #expect(result.code == 0 && !result.output.contains("failed"), "\(result)")
    }
  }

  private func write(_ client: WireClient) throws {
    for piece in Self.pieces {
      let data = [UInt8](repeating: piece.byte, count: pieceByteCount)
      #expect(try client.write(piece.offset, data) == 0)
    }
    #expect(try client.write(pebibyte, [1]) == WireErrno.noSpace)
    let middle = pebibyte / 4
    #expect(try client.call(.writeZeroes, offset: middle, length: 1 << 31).error == 0)
    #expect(try client.call(.trim, offset: middle, length: 1 << 31).error == 0)
    #expect(try client.flush() == 0)
  }

  private func read(_ client: WireClient) throws {
    for piece in Self.pieces {
      let outcome = try client.read(piece.offset, pieceByteCount)
      #expect(outcome.error == 0)
      #expect(outcome.data == [UInt8](repeating: piece.byte, count: pieceByteCount))
    }
    #expect(try client.read(pebibyte / 3, 4_096).data == [UInt8](repeating: 0, count: 4_096))
    let id = try #require(client.contextIDs["base:allocation"])
    let last =
      try client.call(
        .blockStatus, offset: pebibyte - (1 << 30), length: 1 << 30
      ).extents[id] ?? []
    // A hole of zeroes, and at the very end data.
    #expect(last.first?.flags == 3 && last.last?.flags == 0, "\(last)")
    #expect(last.reduce(0) { $0 + $1.length } == 1 << 30)
  }

  /// Runs our command in 64 MiB of private memory: the kernel refuses it more.
  @discardableResult private func limited(_ words: String...) throws -> String {
    let result = try runTool(
      ["prlimit", "--data=67108864", try ServedProcess.path(of: "strata")] + words)
    #expect(result.code == 0, "\(words): \(result)")
    return result.output
  }
}

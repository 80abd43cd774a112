// SPDX-License-Identifier: Apache-2.0
//
// Compressed clusters: exactly one cluster comes out, or an error. Spec: RFC 1951; qcow2.rst,
// "Compressed Clusters Descriptor".

import BlockTypes
import Inflate
import Testing

@Suite struct `Inflating a cluster` {
  /// "strata " 64 times and "x" 64 times, as zlib compresses it with a window of 2^12.
  static let compressed: [UInt8] = [
    0x2b, 0x2e, 0x29, 0x4a, 0x2c, 0x49, 0x54, 0x28, 0x1e, 0xa5, 0x86, 0x26,
    0x55, 0x41, 0x21, 0x00, 0x00,
  ]

  static let content = Array(
    (String(repeating: "strata ", count: 64)
      + String(repeating: "x", count: 64)).utf8)

  @Test func `gives its content`() {
    let (result, bytes) = Self.inflate(Self.compressed, into: 512)
    #expect(result == .none)
    #expect(bytes == Self.content)
  }

  @Test func `ignores what follows in the last sector`() {
    let (result, bytes) = Self.inflate(Self.compressed + [1, 2, 3, 255], into: 512)
    #expect(result == .none)
    #expect(bytes == Self.content)
  }

  @Test func `fills a smaller cluster from a longer stream`() {
    let (result, bytes) = Self.inflate(Self.compressed, into: 511)
    #expect(result == .none)
    #expect(bytes == Array(Self.content.dropLast()))
  }

  @Test func `fails when the data gives less than a cluster`() {
    #expect(Self.inflate(Self.compressed, into: 513).0 == .io)
  }

  @Test func `fails for every truncation`() {
    for byteCount in 1..<(Self.compressed.count - 3) {
      #expect(Self.inflate(Array(Self.compressed.prefix(byteCount)), into: 512).0 == .io)
    }
  }

  @Test func `fails for damaged data and never writes past the cluster`() {
    #expect(Self.inflate([0xff, 0xff, 0xff, 0xff], into: 512).0 == .io)
    for index in Self.compressed.indices {
      for bit in 0..<8 {
        var damaged = Self.compressed
        damaged[index] ^= 1 << bit
        _ = Self.inflate(damaged, into: 512)
      }
    }
  }

  static func inflate(_ bytes: [UInt8], into byteCount: Int) -> (BlockErrno, [UInt8]) {
    var target = [UInt8](repeating: 0xee, count: byteCount)
    let result = target.withUnsafeMutableBytes { target in
      bytes.withUnsafeBytes { source in
        guard let sourceStart = source.baseAddress, let targetStart = target.baseAddress else {
          return BlockErrno.invalid
        }
        return Inflate.inflateCluster(
          source: sourceStart, sourceByteCount: source.count, target: targetStart,
          targetByteCount: target.count)
      }
    }
    return (result, target)
  }
}

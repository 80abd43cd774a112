// SPDX-License-Identifier: Apache-2.0
//
// Compressed clusters: exactly one cluster comes out, or an error. Spec: RFC 1951; RFC 8878;
// qcow2.rst, "Compressed Clusters Descriptor".

import BlockTypes
import Compression
import Foundation
import Testing

private let codecs: [ClusterCodec] = [.deflate, .zstd]

extension ClusterCodec {
  fileprivate func unpack(_ bytes: [UInt8], into byteCount: Int) -> (BlockErrno, [UInt8]) {
    var target = [UInt8](repeating: 0xee, count: byteCount)
    let result = target.withUnsafeMutableBytes { target in
      bytes.withUnsafeBytes { source in
        var span = MutableRawSpan(_unsafeBytes: target)
        return unpack(source.bytes, into: &span)
      }
    }
    return (result, target)
  }

  /// The packed bytes; nil where they are not fewer.
  fileprivate func pack(_ bytes: [UInt8]) -> [UInt8]? {
    var target = [UInt8](repeating: 0xee, count: bytes.count)
    let result = target.withUnsafeMutableBytes { target in
      bytes.withUnsafeBytes { source in
        var span = MutableRawSpan(_unsafeBytes: target)
        return pack(source.bytes, into: &span)
      }
    }
    switch result {
    case .packed(let byteCount): return Array(target[..<byteCount])
    case .notSmaller: return nil
    case .failed(let error):
      Issue.record("packing failed: \(error)")
      return nil
    }
  }
}

private func noise(_ count: Int) -> [UInt8] {
  var state: UInt64 = 0x9e37_79b9_7f4a_7c15
  return (0..<count).map { _ in
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return UInt8(truncatingIfNeeded: state >> 33)
  }
}

private func text(_ count: Int) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: $0 % 61 * ($0 / 4096 + 1)) }
}

@Suite struct `Unpacking a cluster` {
  /// "strata " 64 times and "x" 64 times, as zlib compresses it with a window of 2^12.
  static let deflated: [UInt8] = [
    0x2b, 0x2e, 0x29, 0x4a, 0x2c, 0x49, 0x54, 0x28, 0x1e, 0xa5, 0x86, 0x26,
    0x55, 0x41, 0x21, 0x00, 0x00,
  ]

  static let content = Array(
    (String(repeating: "strata ", count: 64)
      + String(repeating: "x", count: 64)).utf8)

  init() throws { try ClusterCodec.zstd.load() }

  static func packed(_ codec: ClusterCodec) -> [UInt8] {
    codec == .deflate ? deflated : codec.pack(content) ?? []
  }

  @Test(arguments: codecs) func `gives its content`(codec: ClusterCodec) {
    let (result, bytes) = codec.unpack(Self.packed(codec), into: 512)
    #expect(result == .none)
    #expect(bytes == Self.content)
  }

  @Test(arguments: codecs)
  func `ignores what follows in the last sector`(codec: ClusterCodec) {
    let (result, bytes) = codec.unpack(Self.packed(codec) + [1, 2, 3, 255], into: 512)
    #expect(result == .none)
    #expect(bytes == Self.content)
  }

  @Test(arguments: codecs)
  func `fails when the data gives less than a cluster`(codec: ClusterCodec) {
    #expect(codec.unpack(Self.packed(codec), into: 513).0 == .io)
    #expect(codec.unpack(Self.packed(codec) + [0, 0, 0, 0], into: 513).0 == .io)
  }

  @Test(arguments: codecs) func `fails for every truncation`(codec: ClusterCodec) {
    let packed = Self.packed(codec)
    // The end mark of deflate says nothing that the cluster's size does not say.
    for byteCount in 1..<(packed.count - (codec == .deflate ? 3 : 0)) {
      #expect(codec.unpack(Array(packed.prefix(byteCount)), into: 512).0 == .io)
    }
  }

  @Test(arguments: codecs)
  func `fails for damaged data and never writes past the cluster`(codec: ClusterCodec) {
    #expect(codec.unpack([0xff, 0xff, 0xff, 0xff], into: 512).0 == .io)
    #expect(codec.unpack([], into: 512).0 == .io)
    let packed = Self.packed(codec)
    for index in packed.indices {
      for bit in 0..<8 {
        var damaged = packed
        damaged[index] ^= 1 << bit
        _ = codec.unpack(damaged, into: 512)
      }
    }
  }

  // QEMU's readers differ here: deflate stops when the cluster is full, zstd ends its frame.

  @Test func `of deflate fills a cluster from a longer stream`() {
    let (result, bytes) = ClusterCodec.deflate.unpack(Self.deflated, into: 511)
    #expect(result == .none)
    #expect(bytes == Array(Self.content.dropLast()))
  }

  @Test func `of zstd fails when a frame gives more than a cluster`() {
    #expect(ClusterCodec.zstd.unpack(Self.packed(.zstd), into: 511).0 == .io)
  }

  @Test func `of zstd joins frames, and skips those that carry no data`() {
    let halves = [Self.content.prefix(300), Self.content.suffix(212)].map {
      ClusterCodec.zstd.pack(Array($0)) ?? []
    }
    let skipped: [UInt8] = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7]
    let (result, bytes) = ClusterCodec.zstd.unpack(
      skipped + halves[0] + skipped + halves[1], into: 512)
    #expect(result == .none)
    #expect(bytes == Self.content)
  }

  // security.md 2.3: decompression is bounded.

  @Test func `of zstd takes no window that a frame asks for`() {
    // A frame whose header asks for a window of 2 GiB and whose one block repeats a byte.
    let frame: [UInt8] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x03, 0x10, 0x00, 0x41]
    let before = residentByteCount()
    let (result, bytes) = ClusterCodec.zstd.unpack(frame, into: 512)
    #expect(result == .none)
    #expect(bytes == [UInt8](repeating: 0x41, count: 512))
    #expect(residentByteCount() - before < 64 << 20)
  }

  private func residentByteCount() -> Int {
    let status = FileManager.default.contents(atPath: "/proc/self/statm") ?? Data()
    let words = String(decoding: status, as: UTF8.self).split(separator: " ")
    return (words.count > 1 ? Int(words[1]) ?? 0 : 0) * 4096
  }
}

@Suite struct `Packing a cluster` {
  init() throws { try ClusterCodec.zstd.load() }

  @Test(arguments: codecs, [512, 4096, 65_536, 2 << 20])
  func `is undone by unpacking`(codec: ClusterCodec, byteCount: Int) throws {
    for plain in [[UInt8](repeating: 0, count: byteCount), text(byteCount)] {
      let packed = try #require(codec.pack(plain))
      #expect(packed.count < byteCount)
      let (result, bytes) = codec.unpack(packed, into: byteCount)
      #expect(result == .none)
      #expect(bytes == plain)
    }
  }

  @Test(arguments: codecs, [512, 65_536])
  func `says when nothing is gained`(codec: ClusterCodec, byteCount: Int) {
    let gainsNothing = codec.pack(noise(byteCount)) == nil
    #expect(gainsNothing)
  }

  /// Readers of qcow2 have a window of 2^12 bytes only.
  @Test func `with deflate refers to the last 4096 bytes only`() {
    let piece = noise(5_000)
    let isFar = ClusterCodec.deflate.pack(piece + piece) == nil
    #expect(isFar)
    let near = noise(3_500)
    let byteCount = ClusterCodec.deflate.pack(near + near)?.count
    #expect((byteCount ?? .max) < 5_000)
  }
}

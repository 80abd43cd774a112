// SPDX-License-Identifier: Apache-2.0
//
// What the compiler of plans accepts: each bound, and both sides of it.

import Control
import Testing

@Suite struct `A configuration` {
  @Test func `with the defaults is valid`() { #expect(refusal { _ in } == nil) }

  // proto.md "Size constraints": a power of two up to 64 KiB; below 512 only 1 makes sense.
  @Test func `has a block size of 1 or a power of two in 512...65536`() {
    for valid in [1, 512, 4_096, 65_536] as [UInt64] {
      #expect(refusal { $0.exports[0].minimumBlockByteCount = valid } == nil)
    }
    for wrong in [0, 2, 256, 511, 513, 65_537, 131_072] as [UInt64] {
      #expect(refusal { $0.exports[0].minimumBlockByteCount = wrong } == "--block-size")
    }
  }

  // proto.md "Values and strings": at most 4,096 bytes, no zero byte.
  @Test func `has names and texts of at most 4096 bytes`() {
    #expect(refusal { $0.exports[0].name = String(repeating: "x", count: 4_096) } == nil)
    #expect(
      refusal { $0.exports[0].name = String(repeating: "x", count: 4_097) } == "--export-name")
    #expect(refusal { $0.exports[0].description = String(repeating: "ü", count: 2_048) } == nil)
    #expect(
      refusal { $0.exports[0].description = String(repeating: "ü", count: 2_049) }
        == "--description")
    #expect(refusal { $0.exports[0].name = "a\0b" } == "--export-name")
  }

  @Test func `has limits that are limits`() {
    #expect(refusal { $0.connectionsMax = 1 } == nil)
    #expect(refusal { $0.connectionsMax = 0 } == "--max-connections")
    #expect(refusal { $0.connectionsMax = 10_001 } == "--max-connections")
    #expect(refusal { $0.handshakeSecondsMax = 0 } == "--handshake-timeout")
    #expect(refusal { $0.handshakeSecondsMax = 3_601 } == "--handshake-timeout")
    #expect(refusal { $0.exports[0].metadataCacheByteCount = (1 << 20) - 1 } == "--metadata-cache")
    #expect(refusal { $0.exports[0].pollMicroseconds = -1 } == "--poll")
    #expect(refusal { $0.exports[0].pollMicroseconds = 1_001 } == "--poll")
    #expect(refusal { $0.exports[0].pollMicroseconds = 1_000 } == nil)
    #expect(refusal { $0.addresses.socketMode = 0o1000 } == "--socket-mode")
  }

  @Test func `has exports with different names, and not too many`() {
    #expect(refusal { $0.exports = [] } != "--export")
    #expect(refusal { $0.exports.append(.valid("/images/vm2.qcow2")) } == nil)
    #expect(refusal { $0.exports.append(.valid("/other/vm1.qcow2")) } == "--export")
    #expect(
      refusal { config in
        config.exports = (0...PlanCompiler.exportsMax).map { .valid("/images/\($0)") }
      } == "--export")
  }

  @Test func `that is oldstyle has one export and no TLS`() {
    #expect(refusal { $0.speaksOldstyle = true } == nil)
    #expect(
      refusal { config in
        config.speaksOldstyle = true
        config.exports.append(.valid("/images/vm2.qcow2"))
      } == "--oldstyle")
  }
}

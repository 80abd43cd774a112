// SPDX-License-Identifier: Apache-2.0
//
// What the compiler of plans accepts: each bound, and both sides of it.

import BlockTypes
import Control
import Testing

@Suite struct `A configuration` {
  private func config(_ change: (inout ExportConfig) -> Void = { _ in }) -> ExportConfig {
    var config = ExportConfig(
      imagePath: "/images/vm1.qcow2", format: .qcow2, isReadOnly: false, engine: .aio,
      exportName: nil, description: "", minimumBlockByteCount: 1,
      metadataCacheByteCount: 32 << 20, pollMicroseconds: 0, handshakeSecondsMax: 10,
      connectionsMax: 100,
      socketPath: "/run/vm1.sock", socketMode: 0o600, socketOwner: nil, controlPath: nil,
      tcpEndpoint: nil,
      allowsTCPWithoutTLS: false, user: nil, readyDescriptor: nil, pidFilePath: nil,
      runsInBackground: false, printsDrive: false)
    change(&config)
    return config
  }

  private func refusal(_ change: (inout ExportConfig) -> Void) -> String? {
    do throws(ControlError) {
      try PlanCompiler.validate(config(change))
      return nil
    } catch {
      return error.subject
    }
  }

  @Test func `with the defaults is valid`() { #expect(refusal { _ in } == nil) }

  // proto.md "Size constraints": a power of two up to 64 KiB; below 512 only 1 makes sense.
  @Test func `has a block size of 1 or a power of two in 512...65536`() {
    for valid in [1, 512, 4_096, 65_536] as [UInt64] {
      #expect(refusal { $0.minimumBlockByteCount = valid } == nil)
    }
    for wrong in [0, 2, 256, 511, 513, 65_537, 131_072] as [UInt64] {
      #expect(refusal { $0.minimumBlockByteCount = wrong } == "--block-size")
    }
  }

  // proto.md "Values and strings": at most 4,096 bytes, no zero byte.
  @Test func `has names and texts of at most 4096 bytes`() {
    #expect(refusal { $0.exportName = String(repeating: "x", count: 4_096) } == nil)
    #expect(refusal { $0.exportName = String(repeating: "x", count: 4_097) } == "--export-name")
    #expect(refusal { $0.description = String(repeating: "ü", count: 2_048) } == nil)
    #expect(refusal { $0.description = String(repeating: "ü", count: 2_049) } == "--description")
    #expect(refusal { $0.exportName = "a\0b" } == "--export-name")
  }

  @Test func `has limits that are limits`() {
    #expect(refusal { $0.connectionsMax = 1 } == nil)
    #expect(refusal { $0.connectionsMax = 0 } == "--max-connections")
    #expect(refusal { $0.connectionsMax = 10_001 } == "--max-connections")
    #expect(refusal { $0.handshakeSecondsMax = 0 } == "--handshake-timeout")
    #expect(refusal { $0.handshakeSecondsMax = 3_601 } == "--handshake-timeout")
    #expect(refusal { $0.metadataCacheByteCount = (1 << 20) - 1 } == "--metadata-cache")
    #expect(refusal { $0.pollMicroseconds = -1 } == "--poll")
    #expect(refusal { $0.pollMicroseconds = 1_001 } == "--poll")
    #expect(refusal { $0.pollMicroseconds = 1_000 } == nil)
    #expect(refusal { $0.socketMode = 0o1000 } == "--socket-mode")
  }
}

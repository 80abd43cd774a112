// SPDX-License-Identifier: Apache-2.0
//
// What a device of the kernel is told, and what cannot be one. Source: proto.md, "Size
// constraints", "Transmission flags"; linux/nbd.h.

import NBDProtocol
import Testing

@testable import KernelNBD

private func decide(
  _ byteCount: UInt64?, flags: TransmissionFlags = [.hasFlags], minimum: UInt32? = nil,
  maximum: UInt32 = 32 << 20, _ wish: (inout AttachSettings.Wishes) -> Void = { _ in }
) throws -> AttachSettings {
  var export = ExportDetails(name: "")
  export.byteCount = byteCount
  export.flags = flags
  if let minimum {
    export.blockSizes = try BlockSizes(minimum: minimum, preferred: 65_536, maximum: maximum)
  }
  var wishes = AttachSettings.Wishes()
  wish(&wishes)
  return try AttachSettings(export, wishes, pageByteCount: 4_096)
}

/// The sentence of a refusal.
private func refusal(_ body: () throws -> AttachSettings) throws -> String {
  let fault = try #require(throws: AttachFault.self) { _ = try body() }
  return "\(fault)"
}

@Suite struct `A device of the kernel` {
  @Test(arguments: [(UInt32(1), UInt32(512)), (512, 512), (1_024, 1_024), (4_096, 4_096)])
  func `has the server's least blocks, and never less than 512 bytes`(
    _ minimum: UInt32, _ block: UInt32
  ) throws {
    #expect(try decide(1 << 20, minimum: minimum).blockByteCount == block)
  }

  @Test func `has blocks of 512 bytes where the server told none`() throws {
    #expect(try decide(1 << 20).blockByteCount == 512)
  }

  @Test func `has the blocks that the user wants, from the server's least to a page`() throws {
    #expect(
      try decide(1 << 20, minimum: 1_024) { $0.blockByteCount = 4_096 }.blockByteCount == 4_096)
    for wrong: UInt64 in [0, 256, 513, 8_192, 1 << 40] {
      #expect(
        try refusal { try decide(1 << 20) { $0.blockByteCount = wrong } }
          == "--block-size \(wrong) is no power of two from 512 to 4096")
    }
    #expect(
      try refusal { try decide(1 << 20, minimum: 1_024) { $0.blockByteCount = 512 } }
        == "--block-size 512 is below the 1024 bytes of the export's blocks")
  }

  @Test func `is not made of blocks above a page`() throws {
    #expect(
      try refusal { try decide(1 << 20, minimum: 8_192) }
        == "its blocks have 8192 bytes, and those of the kernel at most 4096")
  }

  @Test func `is not made of a size that its blocks do not divide`() throws {
    #expect(try decide(1_024).byteCount == 1_024)
    #expect(
      try refusal { try decide(1_023) }
        == "its 1023 bytes are not a multiple of the block size of 512")
    #expect(
      try refusal { try decide(4_096 + 512) { $0.blockByteCount = 4_096 } }
        == "its 4608 bytes are not a multiple of the block size of 4096")
  }

  @Test(arguments: [nil, UInt64(0)])
  func `is not made of nothing`(_ byteCount: UInt64?) throws {
    #expect(try refusal { try decide(byteCount) } == "the export is empty")
  }

  @Test func `is not made where the server takes less than the kernel sends`() throws {
    #expect(try decide(1 << 20, minimum: 512, maximum: 131_072).blockByteCount == 512)
    #expect(
      try refusal { try decide(1 << 20, minimum: 512, maximum: 131_071) }
        == "it takes requests of 131071 bytes at most, and the kernel sends up to 131072")
  }

  @Test func `has several connections only where the server offers them`() throws {
    #expect(
      try decide(512, flags: [.hasFlags, .canMultiConn]) { $0.connectionCount = 4 }.byteCount == 512
    )
    #expect(try refusal { try decide(512) { $0.connectionCount = 2 } }.contains("CAN_MULTI_CONN"))
  }

  @Test func `has the server's flags, and is read-only if the user says so`() throws {
    #expect(try decide(512, flags: [.hasFlags, .sendFUA]).flags == [.hasFlags, .sendFUA])
    #expect(
      try decide(512, flags: [.sendTrim]) { $0.isReadOnly = true }.flags
        == [.hasFlags, .readOnly, .sendTrim])
  }
}

@Suite struct `A device's name` {
  @Test(arguments: [("/dev/nbd0", UInt32(0)), ("nbd15", 15), ("/dev/nbd1048575", 1_048_575)])
  func `is that of a whole disk`(_ text: String, _ index: UInt32) throws {
    #expect(try DeviceName(text).index == index)
    #expect("\(try DeviceName(text))" == "/dev/nbd\(index)")
  }

  @Test(arguments: [
    "", "/dev/", "/dev/nbd", "/dev/sda", "nbd-1", "nbd1048576", "nbd99999999999", "nbd01",
    "/dev/nbd0/x", "nbd0p1", "/dev/../dev/nbd0", "nbd٣",
  ])
  func `is nothing else`(_ text: String) {
    #expect(throws: AttachFault.self) { try DeviceName(text) }
  }

  @Test func `of a partition is told from other wrong names`() throws {
    let fault = try #require(throws: AttachFault.self) { try DeviceName("/dev/nbd0p1") }
    #expect("\(fault)" == "name the whole disk, not a partition")
  }
}

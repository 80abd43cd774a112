// SPDX-License-Identifier: Apache-2.0
//
// An export as the storage of a layer, before servers that go away or fail. Rule: what was
// acknowledged before a flush is durable after it (proto.md, "NBD_CMD_FLUSH"), or it is told.

import BlockTypes
import Foundation
import LinuxIO
import NBDClient
import NBDProtocol
import Synchronization
import TestSupport
import Testing

private let byteCount = 1 << 20

private func open(
  _ server: ScriptedServer, access: ImageFile.Access = .readWrite, secondsMax: Int = 30
) throws -> ExportStorage {
  try ExportStorage.open(
    NBDURI(endpoint: .unix(path: server.path)), access: access, secondsMax: secondsMax)
}

private func fault(_ storage: ExportStorage, _ operation: RemoteOperation) -> RemoteFault? {
  do throws(RemoteFault) {
    _ = try storage.run(operation)
    return nil
  } catch {
    return error
  }
}

private func read(_ start: UInt64, _ count: UInt64) -> RemoteOperation {
  .read(ByteRange(start: start, end: start + count))
}

@Suite struct `An export as a storage` {
  @Test(arguments: [false, true])
  func `is used on the thread of its caller until it is begun`(begins: Bool) throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      // The connection is lost once, either way.
      try disk.serve(side, crashesAt: { side.number == 0 && $0.offset == 4_096 })
    }
    defer { server.stop() }
    let storage = try open(server)
    if begins { try storage.begin() }
    _ = try storage.run(.write(offset: 10, bytes: [1, 2, 3], isDurable: true))
    #expect(try storage.run(read(9, 5)) == .bytes([0, 1, 2, 3, 0]))
    _ = try storage.run(.write(offset: 4_096, bytes: [9], isDurable: false))
    _ = try storage.run(.flush)
    #expect(disk.durableBytes[4_096] == 9)
    #expect(try storage.run(read(UInt64(byteCount) - 2, 5)) == .bytes([0, 0]), "it ends there")
    #expect(try storage.run(read(UInt64(byteCount), 5)) == .bytes([]))
    try storage.close(milliseconds: 10_000)
    #expect(fault(storage, .flush) != nil)
  }

  @Test func `with large blocks is read at any place, and written around what it has`() throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(
        byteCount: UInt64(byteCount), mode: .simple, blocks: [4_096, 4_096, 8_192])
      while true {
        let request = try side.receiveRequest()
        let isWhole = request.offset % 4_096 == 0 && request.length % 4_096 == 0
        guard isWhole, request.length <= 8_192 else { return }
        try side.reply(request, data: disk.answer(request))
      }
    }
    defer { server.stop() }
    let storage = try open(server)
    #expect(storage.blockByteCount == 4_096)
    let bytes = (0..<20_000).map { UInt8(truncatingIfNeeded: $0 / 7) }
    _ = try storage.run(.write(offset: 4_000, bytes: bytes, isDurable: false))
    #expect(try storage.run(read(4_000, 20_000)) == .bytes(bytes))
    #expect(try storage.run(read(3_999, 2)) == .bytes([0, bytes[0]]))
    #expect(fault(storage, .write(offset: UInt64(byteCount), bytes: [1], isDurable: false)) != nil)
  }

  @Test func `that was opened for reading is never written`() throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      try disk.serve(side)
    }
    defer { server.stop() }
    let storage = try open(server, access: .readOnly)
    let range = ByteRange(start: 0, end: 512)
    for operation: RemoteOperation in [
      .write(offset: 0, bytes: [1], isDurable: false), .trim(range),
      .zero(range, keepsSpace: false, isFast: false),
    ] {
      #expect(fault(storage, operation)?.errno == EROFS)
    }
    #expect(disk.history == [])
  }

  @Test func `fails when nobody comes back in time, then at once, until somebody does`() throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let back = IsBack()
    let server = try ScriptedServer { side in
      guard side.number == 0 || back.value.withLock({ $0 }) else { return }
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      try disk.serve(side, crashesAt: { side.number == 0 && $0.command == 0 })
    }
    defer { server.stop() }
    let storage = try open(server, secondsMax: 1)
    try storage.begin()
    _ = try storage.run(.write(offset: 0, bytes: [7], isDurable: false))
    #expect(fault(storage, read(0, 1))?.errno == ETIMEDOUT)
    #expect(fault(storage, .flush)?.errno == ETIMEDOUT)
    back.value.withLock { $0 = true }
    let deadline = Deadline(seconds: 20)
    while fault(storage, .flush) != nil, deadline.secondsLeft > 0 {}
    // The write that the first server took with it was kept, and repeated.
    #expect(disk.durableBytes[0] == 7)
    #expect(try storage.run(read(0, 1)) == .bytes([7]))
  }

  @Test func `flushes by itself after 32 MiB, so that what it keeps stays bounded`() throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      try disk.serve(side)
    }
    defer { server.stop() }
    let storage = try open(server)
    let bytes = [UInt8](repeating: 1, count: byteCount)
    for _ in 0..<33 { _ = try storage.run(.write(offset: 0, bytes: bytes, isDurable: false)) }
    _ = try storage.run(read(0, 1))
    #expect(disk.history == [UInt16](repeating: 1, count: 32) + [3, 1, 0])
  }

  @Test func `tells at the next flush of one of its own that failed`() throws {
    let disk = MemoryDisk(byteCount: byteCount)
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: UInt64(byteCount), mode: .simple)
      var fails = true
      while true {
        let request = try side.receiveRequest()
        if request.command == 3, fails {
          fails = false
          try side.reply(request, error: 5)
        } else {
          try side.reply(request, data: disk.answer(request))
        }
      }
    }
    defer { server.stop() }
    let storage = try open(server)
    let bytes = [UInt8](repeating: 1, count: byteCount)
    for _ in 0..<33 { _ = try storage.run(.write(offset: 0, bytes: bytes, isDurable: false)) }
    #expect(fault(storage, .flush)?.errno == EIO)
    #expect(fault(storage, .flush) == nil)
  }

  @Test func `whose size is no multiple of its blocks is refused`() throws {
    let server = try ScriptedServer { side in
      try side.negotiate(byteCount: 5_000, mode: .simple, blocks: [4_096, 4_096, 1 << 20])
      side.waitForEnd()
    }
    defer { server.stop() }
    #expect(throws: NBDClientFault.self) { try open(server) }
  }
}

/// Whether a server is there again.
private final class IsBack: Sendable {
  let value = Mutex(false)
}

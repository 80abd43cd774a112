// SPDX-License-Identifier: Apache-2.0
//
// A disk in memory whose crash loses what was not flushed: what a reconnecting client has to
// survive. This file performs no I/O of its own.

import Foundation
import TestSupport

/// The disk behind a scripted server, over all its connections.
final class MemoryDisk: @unchecked Sendable {  // guarded by its lock
  private let lock = NSLock()
  private var volatile: [UInt8]
  private var durable: [UInt8]
  private var commands: [UInt16] = []

  init(byteCount: Int) {
    volatile = .init(repeating: 0, count: byteCount)
    durable = volatile
  }

  /// What a power cut would leave.
  var durableBytes: [UInt8] { lock.withLock { durable } }
  /// The commands that were done, in order.
  var history: [UInt16] { lock.withLock { commands } }

  func crash() { lock.withLock { volatile = durable } }

  /// Serves one connection of simple replies until `isCrash` says so of a request, which is then
  /// neither done nor answered, or until the client goes.
  func serve(
    _ side: ServerSide, crashesAt isCrash: (WireRequest) -> Bool = { _ in false }
  ) throws {
    while true {
      let request = try side.receiveRequest()
      if isCrash(request) { return crash() }
      if request.command == 2 { return }
      try side.reply(request, data: lock.withLock { perform(request) })
    }
  }

  /// Does one request; what a READ brings.
  func answer(_ request: WireRequest) -> [UInt8] { lock.withLock { perform(request) } }

  private func perform(_ request: WireRequest) -> [UInt8] {
    commands.append(request.command)
    let start = Int(request.offset)
    let end = start + Int(request.length)
    switch request.command {
    case 0: return Array(volatile[start..<end])
    case 1: volatile.replaceSubrange(start..<end, with: request.payload)
    case 3: durable = volatile
    case 6: for index in start..<end { volatile[index] = 0 }
    default: break
    }
    // FUA
    if request.flags & 1 != 0 { durable.replaceSubrange(start..<end, with: volatile[start..<end]) }
    return []
  }
}

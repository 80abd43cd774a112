// SPDX-License-Identifier: Apache-2.0
//
// Obeying control: status, clients, kick. Runs between ticks, when somebody asked.

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Counts a request that is being answered, for its command and its client.
  @inline(__always)
  mutating func countAnswer(_ index: Int, _ slot: Int) {
    let isError = image.requests.slots[slot].error != .none
    counters.countAnswer(
      image.requests.slots[slot].command, byteCount: image.requests.slots[slot].length,
      isError: isError)
    connections[index].counters.requestCount += 1
    if isError { connections[index].counters.errorCount += 1 }
  }

  /// Counts a request that is refused before it had a slot.
  mutating func countRefusal(_ index: Int, _ command: Command?) {
    if let command {
      counters.countAnswer(command, byteCount: 0, isError: true)
    } else {
      counters.unknownRequestCount += 1
    }
    connections[index].counters.requestCount += 1
    connections[index].counters.errorCount += 1
  }

  /// Takes what came by mail, once a tick, and does it.
  mutating func obeyMail() {
    hasMail = false
    counters.otherCallCount += 1
    // Who has arrived counts.
    takeArrivals()
    for command in mailbox.takeAll() {
      switch command {
      case .status(let complete): complete(status())
      case .clients(let complete): complete(clients())
      case .kick(let number, let complete): complete(kick(number))
      case .bitmaps(let complete): complete(bitmapStatus())
      case .changeBitmaps(let actions, let complete): changeBitmaps(actions, complete)
      case .resize(let byteCount, let complete): startResize(to: byteCount, complete)
      case .snapshots(let complete): complete(image.snapshots)
      case .edit(let edit, let complete): editImage(edit, complete)
      }
    }
  }

  private mutating func kick(_ number: UInt64) -> Bool {
    for index in 0..<connections.capacity
    where connections.isOccupied(index) && connections[index].number == number {
      // The socket stays until nothing is in flight; the client is to learn of its end now.
      connections[index].socket.shutDown()
      breakConnection(index)
      if connections.isOccupied(index) { updateInterest(index) }
      return true
    }
    return false
  }

  private func status() -> ExportStatus {
    var commands: [Command: CommandCounters] = [:]
    for number in 0..<counters.commands.count {
      if let command = Command(rawValue: UInt16(number)) {
        commands[command] = counters.commands[number]
      }
    }
    return ExportStatus(
      name: plan.name, diskByteCount: image.bitmaps.diskByteCount, isReadOnly: plan.isReadOnly,
      damage: image.overlapGuard.verdict,
      uptimeNanoseconds: MonotonicClock.nanoseconds - startNanoseconds,
      connectionCount: connections.count, connectionsMax: connections.capacity,
      connectionTotal: counters.connectionTotal, commands: commands,
      unknownRequestCount: counters.unknownRequestCount,
      // One slot is the image's own.
      inFlightCount: image.requests.usedCount - 1, systemCalls: systemCalls(),
      diskInFlightCount: image.disks.inFlightCount,
      diskCompletionCount: image.disks.completionCount,
      tablePageCount: image.cache.usedCount, tablePagesMax: image.cache.pages.count,
      tablePageByteCount: TableCache.pageByteCountMax,
      dirtyTablePageCount: image.cache.dirtyCount, flushCount: image.counters.flushCount,
      allocationCount: image.counters.allocationCount,
      allocatedClusterCount: image.counters.allocatedClusterCount,
      packedClusterCount: image.counters.packedClusterCount,
      unpackedByteCount: image.counters.packedClusterCount
        * image.layers[0].geometry.clusterByteCount,
      packedByteCount: image.counters.packedByteCount,
      spinHitCount: spin.hitTotal, spinMissCount: spin.missTotal)
  }

  private func systemCalls() -> SystemCallCounts {
    SystemCallCounts(
      submit: image.disks.submitCallCount,
      otherDisk: image.disks.systemCallCount - image.disks.submitCallCount,
      receive: counters.receiveCallCount, send: counters.sendCallCount, wait: events.waitCount,
      other: counters.otherCallCount + image.counters.poolCallCount
        + image.buffers.systemCallCount)
  }

  private func clients() -> [ClientStatus] {
    let now = MonotonicClock.nanoseconds
    var clients: [ClientStatus] = []
    for index in 0..<connections.capacity where connections.isOccupied(index) {
      clients.append(client(index, now))
    }
    return clients.sorted { $0.number < $1.number }
  }

  private func client(_ index: Int, _ now: UInt64) -> ClientStatus {
    let phase: ClientStatus.Phase =
      switch connections[index].phase {
      case .transmission: .transmission
      case .finishing: .finishing
      }
    let counters = connections[index].counters
    let place = Int(connections[index].securePlace)
    return ClientStatus(
      number: connections[index].number, peer: connections[index].peer,
      connectedNanoseconds: now - connections[index].startNanoseconds, phase: phase,
      export: plan.name, negotiated: connections[index].rules.negotiated,
      contextNames: contextNames(index),
      tls: place < 0 ? nil : secure.streams[place].status, isStalled: connections[index].isStalled,
      inFlightCount: connections[index].requestCount,
      bufferedByteCount: connections[index].bufferByteCount + unreadByteCount(index),
      requestCount: counters.requestCount, errorCount: counters.errorCount,
      receivedByteCount: counters.receivedByteCount, sentByteCount: counters.sentByteCount)
  }
}

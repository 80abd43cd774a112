// SPDX-License-Identifier: Apache-2.0
//
// From a header to a request in a slot, with its buffer and its payload.
// Spec: proto.md, "Transmission phase", "Request types".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Starts a request that the rules admitted and that takes up `consumedByteCount` bytes, or lets
  /// it wait. BLOCK_STATUS tells about `contexts`; nil: all that were selected.
  mutating func execute(
    _ index: Int, _ header: RequestHeader, _ command: Command, consumedByteCount: Int,
    contexts: MetaContextSet? = nil
  ) -> Bool {
    let range = ByteRange(start: header.offset, end: header.offset + header.length)
      .roundedOut(to: image.alignment)
    let bufferByteCount: Int
    switch command {
    case .read, .write: bufferByteCount = header.length == 0 ? 0 : Int(range.byteCount)
    case .blockStatus: bufferByteCount = StatusExtents.bufferByteCount
    case .disconnect, .flush, .trim, .cache, .writeZeroes, .resize: bufferByteCount = 0
    }
    let charged = bufferByteCount == 0 ? 0 : BufferPool.roundedByteCount(bufferByteCount)
    let room = min(
      bufferShare,
      connections[index].bufferByteCount + plan.limits.bufferBytesMax
        - heldBufferByteCount)
    guard connections[index].hasShare(charged, of: room, plan.limits),
      let slot = image.requests.acquire()
    else {
      stall(index)
      return false
    }
    connections[index].received += consumedByteCount
    connections[index].requestCount += 1
    connections[index].bufferByteCount += charged
    heldBufferByteCount += charged
    image.requests.slots[slot].begin(
      header, command, connection: index, bufferStart: range.start, chargedByteCount: charged)
    if charged > 0 {
      guard let buffer = image.buffers.acquire(byteCount: bufferByteCount) else {
        image.requests.slots[slot].error = .noMemory
        return finishWithoutWork(index, slot, header, command)
      }
      image.requests.slots[slot].buffer = buffer
    }
    if header.length == 0, command != .flush, command != .resize {
      return finishWithoutWork(index, slot, header, command)
    }
    if command == .write {
      connections[index].payloadSlot = Int32(slot)
      return takePayload(index)
    }
    if command == .read { connections[index].adaptSendRoom(readByteCount: header.length) }
    if command == .blockStatus {
      image.requests.slots[slot].statusExtents.begin(
        contexts ?? connections[index].rules.negotiated.contexts,
        extentByteCount: connections[index].framing.extentByteCount,
        in: image.requests.slots[slot].buffer)
    }
    image.requests.slots[slot].wantsHoles =
      connections[index].framing.hasChunks && !header.flags.contains(.dontFragment)
    image.start(slot)
    return true
  }

  /// Answers a request that has nothing to do, or no memory to do it in.
  private mutating func finishWithoutWork(
    _ index: Int, _ slot: Int, _ header: RequestHeader, _ command: Command
  ) -> Bool {
    if command == .write, header.length > 0 {
      // The payload has to be taken out of the stream first.
      retire(slot)
      beginRefusal(index, header, .ENOMEM, payloadByteCount: header.length)
      return true
    }
    image.requests.slots[slot].stage = .finished
    image.finished.append(slot, &image.requests.slots)
    return true
  }

  /// Copies what has arrived of a payload behind its header, and starts the request when it is
  /// whole.
  mutating func takePayload(_ index: Int) -> Bool {
    let slot = Int(connections[index].payloadSlot)
    let piece = image.requests.slots[slot].payloadRest
    let count = min(piece.byteCount, unreadByteCount(index))
    piece.buffer.copy(
      piece.start, from: connections[index].buffer, connections[index].received, count)
    connections[index].received += count
    image.requests.slots[slot].receivedByteCount += UInt64(count)
    guard image.requests.slots[slot].receivedByteCount == image.requests.slots[slot].length else {
      return false
    }
    connections[index].payloadSlot = -1
    image.start(slot)
    return true
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A disk that grows, as control orders it and as clients learn of it. Spec: proto.md of the branch
// extension-resize, "NBD_CMD_RESIZE".

import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Begins a resize that control ordered; `complete` is called when it has ended.
  mutating func startResize(to byteCount: UInt64, _ complete: @escaping @Sendable (String?) -> Void)
  {
    do throws(ResizeRefusal) {
      try image.requireResizable(to: byteCount)
    } catch {
      return complete(error.reason)
    }
    let block = UInt64(plan.minimumBlockByteCount)
    guard byteCount.isAligned(to: block) else {
      return complete("\(byteCount) bytes are no multiple of the block size \(block)")
    }
    guard let slot = image.requests.acquire() else {
      return complete("too many requests are in flight; try again")
    }
    image.requests.slots[slot].command = .resize
    image.requests.slots[slot].offset = byteCount
    resizeOrders[slot] = complete
    image.start(slot)
  }

  /// Tells those who have to know how a resize ended: who ordered it, and all clients, which may
  /// use the larger disk from now on.
  mutating func resizeEnded(_ slot: Int) {
    let error = image.requests.slots[slot].error
    if error == .none, image.bitmaps.diskByteCount != notice.current.traits.byteCount {
      notice.publish(ExportLoop.describe(plan, image.bitmaps))
      for index in 0..<connections.capacity where connections.isOccupied(index) {
        connections[index].rules.grow(to: image.bitmaps.diskByteCount)
      }
    }
    startBitmapOrder()
    resizeOrders.removeValue(forKey: slot)?(ExportLoop.reason(of: error))
  }

  private static func reason(of error: BlockErrno) -> String? {
    switch error {
    case .none: nil
    case .io: "the disk failed"
    case .noSpace: "there is no room for it where the image lives"
    case .noMemory: "there is no memory for it"
    case .shutdown: "the server stops"
    case .invalid, .readOnly, .notSupported, .overflow: "the image cannot have this size"
    }
  }
}

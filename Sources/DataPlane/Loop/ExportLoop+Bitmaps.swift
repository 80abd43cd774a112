// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps as control changes them and as clients have selected them. Source: decision 0018.

import Bitmaps
import BlockTypes
import LinuxIO
import NBDProtocol

/// A change of bitmaps that the image keeps, and who waits for it.
struct BitmapOrder {
  let actions: [BitmapAction]
  let complete: @Sendable (BitmapFault?) -> Void
}

extension ExportLoop {
  /// Changes that may wait at one time.
  static let bitmapOrdersMax = 64

  /// Does all of `actions` or none, and completes with why none. Clients that come later are told
  /// about the bitmaps that there are then. What the image keeps is made ready there first.
  mutating func changeBitmaps(
    _ actions: [BitmapAction], _ complete: @escaping @Sendable (BitmapFault?) -> Void
  ) {
    if image.changesStore(actions) {
      guard bitmapOrders.count < ExportLoop.bitmapOrdersMax else {
        return complete(BitmapFault("too many changes wait for the image; try again"))
      }
      bitmapOrders.append(BitmapOrder(actions: actions, complete: complete))
      // The loop may be about to sleep: nobody else has anything to do.
      startBitmapOrder()
      return
    }
    let holders = holders()
    do throws(BitmapFault) {
      try image.changeBitmaps(actions) { holders[$0]?.first }
    } catch {
      return complete(error)
    }
    publishBitmaps()
    complete(nil)
  }

  private mutating func publishBitmaps() {
    guard image.bitmaps.revision != notice.current.revision else { return }
    notice.publish(ExportLoop.describe(plan, image.bitmaps))
  }

  /// Begins the first change that waits, unless another one goes on.
  mutating func startBitmapOrder() {
    guard let first = bitmapOrders.first, !image.standstill.isHolding else { return }
    _ = image.startBitmapWork(.change(first.actions))
  }

  /// The moment of a change that was made ready in `slot`, or could not be.
  mutating func bitmapOrderEnded(_ slot: Int) {
    let holders = holders()
    let fault = image.commitBitmapChange(slot) { holders[$0]?.first }
    publishBitmaps()
    bitmapOrders.removeFirst().complete(fault)
    startBitmapOrder()
  }

  /// Whether the bitmaps that a client has selected are still those that it was told about: it may
  /// have been told long ago.
  mutating func hasBitmaps(of negotiated: Negotiated) -> Bool {
    var selected = negotiated.contexts.dirtyBitmaps
    while let id = selected.popFirst() {
      guard let bitmap = image.bitmaps[number: MetaContextSet.bitmapNumber(ofID: id)],
        bitmap.firstRevision <= negotiated.revision
      else { return false }
    }
    return true
  }

  func bitmapStatus() -> [BitmapStatus] {
    let holders = holders()
    let usable = image.bitmaps.all.map { bitmap in
      BitmapStatus(
        name: bitmap.name, granularityByteCount: bitmap.granularityByteCount,
        isPersistent: bitmap.isPersistent, isRecovered: bitmap.isRecovered,
        isEnabled: bitmap.isEnabled, isFrozen: bitmap.isFrozen,
        dirtyByteCount: bitmap.shown.dirtyByteCount, memoryByteCount: bitmap.memoryByteCount,
        clients: holders[bitmap.number] ?? [])
    }
    return usable
      + image.store.bitmaps.filter { !$0.isLoaded }.map { stored in
        BitmapStatus(
          name: stored.entry.name, granularityByteCount: stored.entry.granularityByteCount,
          isPersistent: true, isRecovered: false, unusableReason: stored.reason ?? "unknown",
          isEnabled: stored.entry.isAuto, isFrozen: false, dirtyByteCount: 0, memoryByteCount: 0,
          clients: [])
      }
  }

  /// The numbers of the clients that have selected a bitmap, by the bitmap's number.
  private func holders() -> [Int: [UInt64]] {
    var holders: [Int: [UInt64]] = [:]
    for index in 0..<connections.capacity where connections.isOccupied(index) {
      var selected = connections[index].rules.negotiated.contexts.dirtyBitmaps
      while let id = selected.popFirst() {
        holders[MetaContextSet.bitmapNumber(ofID: id), default: []]
          .append(connections[index].number)
      }
    }
    return holders.mapValues { $0.sorted() }
  }

  /// The contexts that a client has selected.
  func contextNames(_ index: Int) -> [String] {
    let selected = connections[index].rules.negotiated.contexts
    // A selected bitmap is never removed, so its name is in the newest description.
    return notice.current.contexts.filter { selected.contains($0) }.map(\.name)
  }
}

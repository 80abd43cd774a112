// SPDX-License-Identifier: Apache-2.0
//
// Dirty bitmaps as control changes them and as clients have selected them. Source: decision 0018.

import Bitmaps
import BlockTypes
import LinuxIO
import NBDProtocol

extension ExportLoop {
  /// Does all of `actions` or none; returns why none. Clients that come later are told about the
  /// bitmaps that there are then.
  mutating func changeBitmaps(_ actions: [BitmapAction]) -> BitmapFault? {
    let holders = holders()
    do throws(BitmapFault) {
      try image.changeBitmaps(actions) { holders[$0]?.first }
    } catch {
      return error
    }
    if image.bitmaps.revision != notice.current.revision {
      notice.publish(ExportLoop.describe(plan, image.bitmaps))
    }
    return nil
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
    return image.bitmaps.all.map { bitmap in
      BitmapStatus(
        name: bitmap.name, granularityByteCount: bitmap.granularityByteCount,
        isEnabled: bitmap.isEnabled, isFrozen: bitmap.isFrozen,
        dirtyByteCount: bitmap.shown.dirtyByteCount, memoryByteCount: bitmap.memoryByteCount,
        clients: holders[bitmap.number] ?? [])
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

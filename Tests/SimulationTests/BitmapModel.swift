// SPDX-License-Identifier: Apache-2.0
//
// What bitmaps that the image keeps must say: a block in which anything has changed since the
// bitmap began is dirty, whatever happened to the power. It may say more, never less.
// Source: decision 0024.

import Bitmaps
import BlockTypes

@testable import DataPlane

/// The bitmaps of a simulation.
struct BitmapModel {
  /// One bitmap.
  struct Entry {
    let name: String
    /// What units could hold at the moments since when it records, one list for each moment.
    /// Whatever else a unit holds was written since one of them.
    var pasts: [[GuestModel.Rule]]
    /// A cut may not take it.
    var isSure = true
  }

  static let names = ["b0", "b1", "b2"]

  var entries: [Entry] = []

  subscript(name: String) -> Entry? { entries.first { $0.name == name } }

  mutating func set(_ entry: Entry) {
    entries.removeAll { $0.name == entry.name }
    entries.append(entry)
  }

  // MARK: Changes

  /// Just before the moment of `actions`: what holds before and after it, and half way.
  mutating func begin(_ actions: [BitmapAction], _ past: [GuestModel.Rule]) {
    for action in actions {
      switch action {
      case .add(let name, _, _, _): set(Entry(name: name, pasts: [past], isSure: false))
      case .clear(let name):
        set(Entry(name: name, pasts: [past], isSure: self[name]?.isSure ?? false))
      case .remove(let name):
        if var entry = self[name] {
          entry.isSure = false
          set(entry)
        }
      case .merge, .enable, .disable, .freeze, .thaw: break
      }
    }
  }

  /// Just after it; `isKept` when the image has it.
  mutating func end(_ actions: [BitmapAction], isKept: Bool) {
    for action in actions {
      switch action {
      case .add(let name, _, _, _):
        guard var entry = self[name] else { continue }
        entry.isSure = isKept
        set(entry)
      case .remove(let name): if isKept { entries.removeAll { $0.name == name } }
      case .merge(let sources, let target):
        guard isKept, var entry = self[target] else { continue }
        for source in sources where source != target {
          entry.pasts += self[source]?.pasts ?? []
        }
        entry.pasts = Array(entry.pasts.prefix(3))
        set(entry)
      case .clear, .enable, .disable, .freeze, .thaw: break
      }
    }
  }

  // MARK: Judging

  /// What is wrong with the bitmaps of an image that holds `bytes`; nil when nothing is.
  func breach(
    _ image: borrowing ImageStack, _ bytes: [UInt8], mayBeLost: Bool
  ) -> String? {
    for entry in entries {
      guard let bitmap = image.bitmaps.all.first(where: { $0.name == entry.name }) else {
        if !entry.isSure || mayBeLost { continue }
        let reason = image.store.unusable(named: entry.name)?.reason
        return "bitmap \(entry.name) is lost: \(reason ?? "it is not there")"
      }
      for past in entry.pasts {
        if let change = BitmapModel.unmarked(bitmap.shown, bytes, past) {
          return "bitmap \(entry.name) does not say that \(change)"
        }
      }
    }
    return nil
  }

  /// The first unit that holds what it could not hold then, and is not dirty.
  private static func unmarked(
    _ bits: DirtyBitmap, _ bytes: [UInt8], _ past: [GuestModel.Rule]
  ) -> String? {
    let unit = GuestModel.unitByteCount
    return bytes.withUnsafeBytes { raw in
      for rule in past {
        var place = rule.range.start
        while place < rule.range.end, Int(place + unit) <= raw.count {
          let run = bits.run(at: place)
          if !run.isDirty {
            for clean in stride(
              from: place, to: min(run.end, rule.range.end), by: Int(unit))
            where Int(clean + unit) <= raw.count {
              let version = GuestModel.version(raw, at: Int(clean), unit: clean / unit)
              if version.map(rule.versions.contains) != true {
                return "byte \(clean) changed to \(version ?? 0), which was one of \(rule.versions)"
              }
            }
          }
          place = max(run.end.alignedDown(to: unit), place + unit)
        }
      }
      return nil
    }
  }

  /// Forgets those that the image has lost.
  mutating func keep(_ image: borrowing ImageStack) {
    var kept: [Entry] = []
    for var entry in entries where image.bitmaps.all.contains(where: { $0.name == entry.name }) {
      entry.isSure = true
      kept.append(entry)
    }
    entries = kept
  }
}

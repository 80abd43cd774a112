// SPDX-License-Identifier: Apache-2.0
//
// One answer out of the answers of several threads. This file performs no I/O.

import DataPlane
import Synchronization

/// Collects `count` parts, from any threads, and hands them over with the last one.
final class Gathering<Part: Sendable>: Sendable {
  private let parts: Mutex<(missing: Int, values: [Part])>
  private let complete: @Sendable ([Part]) -> Void

  init(count: Int, _ complete: @escaping @Sendable ([Part]) -> Void) {
    precondition(count > 0, "nobody is asked")
    parts = Mutex((missing: count, values: []))
    self.complete = complete
  }

  func add(_ part: Part) {
    let all = parts.withLock { parts -> [Part]? in
      parts.values.append(part)
      parts.missing -= 1
      return parts.missing == 0 ? parts.values : nil
    }
    if let all { complete(all) }
  }
}

extension ControlAnswer {
  /// All clients, oldest first. One who was on its way into an export is known to both.
  static func clients(
    _ visitors: [ClientStatus], _ parts: [[ClientStatus]], _ reception: ReceptionStatus
  ) -> ControlAnswer {
    let inside = parts.flatMap(\.self)
    let numbers = Set(inside.map(\.number))
    let all = inside + visitors.filter { !numbers.contains($0.number) }
    return .clients(all.sorted { $0.number < $1.number }, reception)
  }
}

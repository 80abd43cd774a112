// SPDX-License-Identifier: Apache-2.0
//
// Snapshots that come and go while requests are under way: the image stands still for each, as the
// control socket has it do. Source: decision 0031.

import BlockTypes
import ImageTools
import LinuxIO

@testable import DataPlane

/// A snapshot's change that is under way. One thread uses it.
final class SnapshotOrder: @unchecked Sendable {
  enum Verb { case create, delete }

  let verb: Verb
  let name: String
  /// Called by the change when it begins.
  var onBegin: (() -> Void)?

  init(_ verb: Verb, _ name: String) {
    self.verb = verb
    self.name = name
  }

  /// What is done to the file, as Control has it done.
  var edit: ImageEdit {
    ImageEdit { storage in
      self.onBegin?()
      do throws(ImageFault) {
        switch self.verb {
        case .create: return .done(try Snapshots.create(inStandingStill: storage, name: self.name))
        case .delete:
          return .done(try Snapshots.delete(inStandingStill: storage, idOrName: self.name))
        }
      } catch {
        return .failed(error.description, losesWrites: error.losesWrites)
      }
    }
  }
}

extension Session {
  /// Snapshots that a simulation takes beside those that it begins with.
  static let snapshotOrdersMax = 6

  /// Orders a snapshot or the end of one, unless the image stands still already.
  func orderSnapshot() {
    guard !image.standstill.isHolding, snapshotOrderCount < Session.snapshotOrdersMax else {
      return
    }
    let live = snapshots.dueNames
    let order =
      live.isEmpty || random.chance(60)
      ? SnapshotOrder(.create, "live\(random.below(1 << 30))")
      : SnapshotOrder(.delete, random.pick(live))
    order.onBegin = { [unowned self, unowned order] in self.snapshotBegins(order) }
    guard image.startStandstill(order.edit, plan) else { return }
    snapshotOrder = order
    snapshotOrderCount += 1
  }

  /// The moment of the snapshot: nothing is under way, and what is done is durable.
  private func snapshotBegins(_ order: SnapshotOrder) {
    switch order.verb {
    case .create:
      let whole = ByteRange(start: 0, end: 8 << 20)
      snapshots.set(
        SnapshotModel.Entry(
          name: order.name, byteCounts: model.byteCounts,
          rules: model.rulesNow(whole, done: changesDone), isDue: false))
    case .delete: snapshots.doubt(order.name)
    }
  }

  /// The change has ended; those who were held go on.
  func endSnapshotOrder() throws {
    guard let order = snapshotOrder else { throw Breach("a change ends that nobody has ordered") }
    snapshotOrder = nil
    switch image.endStandstill().outcome {
    case .done:
      switch order.verb {
      case .create: try snapshots.settle(order.name, in: machine)
      case .delete: snapshots.remove(order.name)
      }
    case .failed(let reason, _):
      guard hasFailures else { throw Breach("snapshot \(order.name): \(reason)") }
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Changes of the image's file that control orders: one after the other, each while the image stands
// still (Standstill.swift). Source: decision 0031.

import LinuxIO

/// A change that waits or is under way, and who waits for it.
struct EditOrder {
  let edit: ImageEdit
  let complete: @Sendable (ImageEdit.Outcome, _ heldNanoseconds: UInt64) -> Void
}

extension ExportLoop {
  /// Changes that may wait at one time.
  static let editOrdersMax = 16

  /// Has the image changed by `edit`, and completes with how that ended, and for how long requests
  /// were held.
  mutating func editImage(
    _ edit: ImageEdit, _ complete: @escaping @Sendable (ImageEdit.Outcome, UInt64) -> Void
  ) {
    guard editOrders.count < ExportLoop.editOrdersMax else {
      return complete(.failed("too many changes wait for the image; try again"), 0)
    }
    editOrders.append(EditOrder(edit: edit, complete: complete))
    startEditOrder()
  }

  /// Begins the first change that waits, unless another one goes on.
  mutating func startEditOrder() {
    while let first = editOrders.first, !image.standstill.isHolding {
      guard let reason = editRefusal() else {
        _ = image.startStandstill(first.edit, plan)
        return
      }
      editOrders.removeFirst().complete(.failed(reason), 0)
    }
  }

  /// The end of a change: who was held goes on before it is told.
  mutating func editEnded() {
    let (outcome, nanoseconds) = image.endStandstill()
    editOrders.removeFirst().complete(outcome, nanoseconds)
    startEditOrder()
  }

  private mutating func editRefusal() -> String? {
    if stop.isStopping { return "the server stops" }
    if plan.isReadOnly { return "the export is read-only" }
    guard case .qcow2 = plan.layers[0].format else {
      return "the image is raw, and has no tables that could be changed"
    }
    let block = plan.layers[0].storage.file.blockByteCount
    return block > 1
      ? "the image lies on a remote storage that is written in blocks of \(block) bytes" : nil
  }
}

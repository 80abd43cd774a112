// SPDX-License-Identifier: Apache-2.0
//
// Looking at a bitmap that an image keeps, without serving the image. Spec: qcow2.rst, "Bitmaps".

import Bitmaps
import BlockTypes
import NBDProtocol

/// One bitmap of the active layer, as it would be offered.
public struct KeptBitmap {
  public let bits: DirtyBitmap
  /// Taken from an image that was not closed in order: it may be wider than the truth.
  public let isRecovered: Bool

  /// - Throws: `BitmapFault` when there is none of that name, or why it cannot be used;
  ///   `ImageError` and `SystemError` when the directory cannot be read.
  public init(named name: String, of plan: ExportPlan) throws {
    precondition(plan.isReadOnly, "a bitmap is looked at in an image that may be changed")
    var bitmaps = BitmapSet(
      diskByteCount: plan.diskByteCount, countMax: MetaContext.dirtyBitmapsMax)
    let store = try BitmapStore.load(plan, into: &bitmaps)
    if let kept = store.unusable(named: name) {
      throw BitmapFault("bitmap \"\(name)\" cannot be used: \(kept.reason ?? "unknown")")
    }
    guard let bitmap = bitmaps.all.first(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
      throw BitmapFault("there is no bitmap \"\(name)\"")
    }
    bits = bitmap.shown
    isRecovered = bitmap.isRecovered
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What may be asked of the bitmaps of a disk. Source: QEMU docs/interop/bitmaps.rst, whose words
// these are; freeze and thaw are what its backup jobs do to their bitmap. This file performs no
// I/O.

/// One change of the bitmaps of a disk.
public enum BitmapAction: Hashable, Sendable {
  /// Makes a clean bitmap, which records from now on if it is enabled. A persistent one is kept in
  /// the image.
  case add(
    name: String, granularityByteCount: UInt64, isEnabled: Bool, isPersistent: Bool = false)
  case remove(name: String)
  /// Makes every block clean.
  case clear(name: String)
  /// Records from now on.
  case enable(name: String)
  /// Records no more; what is dirty stays dirty.
  case disable(name: String)
  /// Marks in the target what is dirty in any of the sources.
  case merge(sources: [String], target: String)
  /// Shows the bitmap as it is at this moment, for a backup, and records apart what is written
  /// from now on.
  case freeze(name: String)
  /// Ends a freeze.
  case thaw(name: String, BackupOutcome)
}

extension BitmapAction {
  /// The bitmap that is changed, made or removed.
  public var target: String {
    switch self {
    case .add(let name, _, _, _), .remove(let name), .clear(let name), .enable(let name),
      .disable(let name), .freeze(let name), .thaw(let name, _):
      name
    case .merge(_, let target): target
    }
  }
}

/// How the backup went that a bitmap was frozen for.
public enum BackupOutcome: String, Hashable, Sendable, CaseIterable {
  /// What was frozen is saved: the bitmap begins anew at the moment of the freeze.
  case done
  /// What was frozen is to be saved again: it is merged with what was written since.
  case failed
}

// SPDX-License-Identifier: Apache-2.0
//
// An image seen as it was at one of its snapshots, for readers. Spec: qcow2.rst, "Snapshots".
// This file performs no I/O.

import BlockTypes

extension Header {
  /// The header that a reader of the snapshot uses: the snapshot's L1 table and disk size in the
  /// place of the active ones. Never written.
  public func atSnapshot(
    _ snapshot: SnapshotEntry, fileByteCount: UInt64
  ) throws(ImageError) -> Header {
    var header = self
    header.l1TableOffset = snapshot.l1TableOffset
    header.l1EntryCount = snapshot.l1EntryCount
    header.diskByteCount = snapshot.diskByteCount ?? diskByteCount
    // They tell of the disk as it is now.
    header.autoclearFeatures.remove(.bitmaps)
    do throws(ImageError) {
      try header.requireConsistentTables(fileByteCount: fileByteCount)
    } catch {
      throw ImageError(error.kind, "snapshot \(snapshot.id): \(error.reason)")
    }
    return header
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What control may ask of a running export. This file performs no I/O.

import Bitmaps
import Qcow2

/// A question or an order for the loop of an export, by its mailbox.
///
/// The loop obeys at the end of a tick and calls the completion once, on its own thread: the
/// completion must not wait. Commands that wait when the loop ends are never completed.
public enum ExportCommand: Sendable {
  case status(@Sendable (ExportStatus) -> Void)
  /// The clients, oldest first.
  case clients(@Sendable ([ClientStatus]) -> Void)
  /// Ends a client: what was answered stays answered, what is in flight ends on the disk, and the
  /// client learns no more of it. Completes with false when there is no client of this number.
  case kick(client: UInt64, @Sendable (Bool) -> Void)
  /// The dirty bitmaps, in the order in which they were added.
  case bitmaps(@Sendable ([BitmapStatus]) -> Void)
  /// Changes the bitmaps, all actions at one moment or none. Completes with the reason for none.
  case changeBitmaps([BitmapAction], @Sendable (BitmapFault?) -> Void)
  /// Makes the disk larger. Completes with the reason if it does not become so.
  case resize(byteCount: UInt64, @Sendable (String?) -> Void)
  /// The internal snapshots of the image; nil when they cannot be read.
  case snapshots(@Sendable (SnapshotTable?) -> Void)
  /// Changes the image's file while requests stand still. Completes with how it ended, and for how
  /// long requests were held.
  case edit(ImageEdit, @Sendable (ImageEdit.Outcome, _ heldNanoseconds: UInt64) -> Void)
}

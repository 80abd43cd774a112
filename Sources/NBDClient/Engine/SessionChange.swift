// SPDX-License-Identifier: Apache-2.0
//
// Whether an export is still the one that a client opened. This file performs no I/O.

import NBDProtocol

/// Compares two sessions of one client.
enum SessionChange {
  /// What forbids to go on with `new` where `old` was; nil when nothing does.
  ///
  /// More abilities do no harm. The same name with another size would be another disk.
  static func obstacle(from old: ClientSession, to new: ClientSession) -> String? {
    if old.byteCount != new.byteCount {
      return "the export had \(old.byteCount) bytes and has \(new.byteCount) now"
    }
    if old.export.flags.contains(.readOnly) != new.export.flags.contains(.readOnly) {
      return "the export is \(new.export.flags.contains(.readOnly) ? "" : "not ")read-only now"
    }
    let missing = old.export.flags.subtracting(new.export.flags)
    if !missing.isEmpty {
      return "the export lost abilities (flags 0x\(String(missing.rawValue, radix: 16)))"
    }
    if new.mode < old.mode {
      return "the server spoke \(old.mode.text) and has only \(new.mode.text) now"
    }
    if new.export.minimumBlockByteCount > old.export.minimumBlockByteCount
      || new.export.payloadByteCountMax < old.export.payloadByteCountMax
    {
      return "the export's block sizes are narrower now"
    }
    for name in old.export.contexts where !new.export.contexts.contains(name) {
      return "the export lost the context \(name)"
    }
    return nil
  }

  /// The new ids of the contexts in the old order; extra contexts come last.
  static func contextIDs(of new: ClientSession, inOrderOf old: ClientSession) -> [UInt32] {
    var ids: [UInt32] = []
    for name in old.export.contexts {
      if let index = new.export.contexts.firstIndex(of: name) {
        ids.append(new.contextIDs[index])
      }
    }
    return ids + new.contextIDs.filter { !ids.contains($0) }
  }
}

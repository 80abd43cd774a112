// SPDX-License-Identifier: Apache-2.0
//
// Notices that somebody wrote to a backing file while an overlay on it was served: what the guest
// saw then is a mixture. Locks keep QEMU and ourselves from it; other programs they do not.

import ImageTools
import LinuxIO

/// The state of the backing files when they were opened.
struct BaseWatch {
  private struct Stamp: Hashable {
    let seconds: Int64
    let nanoseconds: Int64
    let byteCount: UInt64

    /// nil for an export, which has no times.
    init?(of storage: borrowing LayerStorage) throws(SystemError) {
      guard let time = try storage.modificationTime() else { return nil }
      (seconds, nanoseconds) = time
      byteCount = try storage.byteCount()
    }
  }

  private let bases: [(file: LayerFile, stamp: Stamp)]

  /// - Parameter layers: the chain, active layer first, which is not watched: we write to it.
  init(_ layers: [OpenedLayer]) throws(ControlError) {
    var bases: [(file: LayerFile, stamp: Stamp)] = []
    for layer in layers.dropFirst() {
      do throws(SystemError) {
        guard let stamp = try Stamp(of: layer.storage.file) else { continue }
        bases.append((layer.storage, stamp))
      } catch {
        throw ControlError(layer.path, error)
      }
    }
    self.bases = bases
  }

  /// Throws when a backing file is not what it was.
  func verify() throws(ControlError) {
    for base in bases {
      let now: Stamp?
      do throws(SystemError) {
        now = try Stamp(of: base.file.file)
      } catch {
        throw ControlError(base.file.path, error)
      }
      guard now == base.stamp else {
        throw ControlError(
          base.file.path, "this backing file was changed while an overlay on it was served",
          wayOut: "restore it from a backup, or check the guest's file systems")
      }
    }
  }
}

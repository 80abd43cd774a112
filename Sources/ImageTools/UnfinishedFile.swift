// SPDX-License-Identifier: Apache-2.0
//
// The file that a verb is making, for whoever ends the verb before its time. Removes files.

import LinuxIO
import Synchronization

/// Remembers a file for as long as it is unfinished.
public final class UnfinishedFile: Sendable {
  private let path = Mutex<String?>(nil)

  public init() {}

  /// The file was made.
  func begin(_ path: String) { self.path.withLock { $0 = path } }

  /// The file is whole, or gone.
  func end() { path.withLock { $0 = nil } }

  /// Removes the file if there is one. Whoever makes it fails afterwards.
  public func remove() {
    path.withLock { path in
      guard let name = path else { return }
      path = nil
      // Nobody is left to tell that it stays.
      do throws(SystemError) { try FolderEntry.remove(name) } catch {}
    }
  }
}

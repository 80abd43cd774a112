// SPDX-License-Identifier: Apache-2.0
//
// The file that a verb is making, for whoever ends the verb before its time. Removes files.

import LinuxIO
import Synchronization

/// Remembers a file for as long as it is unfinished.
public final class UnfinishedFile: Sendable {
  private let path = Mutex<String?>(nil)

  public init() {}

  /// Makes the file; nobody removes it before it is known to be ours.
  func make(
    _ path: String, _ body: () throws(ImageFault) -> LayerFile
  ) throws(ImageFault) -> LayerFile {
    // The lock's own rethrowing does not carry the type of an error.
    let result = self.path.withLock { held -> Result<LayerFile, ImageFault> in
      do throws(ImageFault) {
        let file = try body()
        held = path
        return .success(file)
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

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

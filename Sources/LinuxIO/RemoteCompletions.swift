// SPDX-License-Identifier: Apache-2.0
//
// Where remote storages leave the results of queued operations for the thread of a disk queue.

import BlockTypes
import Synchronization

/// Results on their way from any thread to the one that owns a `DiskQueue`.
final class RemoteCompletions: Sendable {
  /// A byte count or -errno, as the kernel would say it, for operation `index`.
  struct Result {
    let index: Int
    let value: Int
  }

  private let arrived = Mutex<[Result]>([])
  /// Readable while results wait that nobody was told of.
  let bell: EventCounter

  init() throws(SystemError) { bell = try EventCounter(.polled) }

  func add(_ index: Int, _ value: Int) {
    arrived.withLock { $0.append(Result(index: index, value: value)) }
    bell.signal()
  }

  func take() -> Result? {
    arrived.withLock { $0.isEmpty ? nil : $0.removeFirst() }
  }
}

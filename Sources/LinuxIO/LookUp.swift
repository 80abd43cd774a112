// SPDX-License-Identifier: Apache-2.0
//
// A call that nobody can end, on a thread of its own, so that its caller can stop waiting.
// Source: getaddrinfo(3), which has no deadline. This file starts threads.

import Synchronization

/// One such call. The thread lives until the call returns, whether anybody waits or not.
final class LookUp<Value: Sendable>: Sendable {
  private let outcome = Mutex<Result<Value, SocketError>?>(nil)
  private let end: EventCounter

  init(_ body: @escaping @Sendable () throws(SocketError) -> Value) throws(SocketError) {
    do throws(SystemError) {
      end = try EventCounter(.polled)
    } catch {
      throw .system(error)
    }
    do throws(SystemError) {
      // The thread keeps this object, and with it the counter, until it has told.
      try OwnThread { [self] in
        let found: Result<Value, SocketError>
        do throws(SocketError) { found = .success(try body()) } catch { found = .failure(error) }
        outcome.withLock { $0 = found }
        end.signal()
      }.detach()
    } catch {
      throw .system(error)
    }
  }

  /// Can be read when the call has returned.
  var descriptor: Int32 { end.descriptor }

  /// What the call returned or threw; nil while it has not.
  func result() throws(SocketError) -> Value? {
    guard let found = outcome.withLock({ $0 }) else { return nil }
    return try found.get()
  }
}

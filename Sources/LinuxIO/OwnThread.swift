// SPDX-License-Identifier: Apache-2.0
//
// A thread that runs one function to its end. Source: pthread_create(3), pthread_join(3).

import Glibc

/// A running thread. It has to be joined, which waits for its function to return, or let go.
public struct OwnThread: ~Copyable {
  private final class Body {
    let run: () -> Void
    init(_ run: @escaping () -> Void) { self.run = run }
  }

  private let thread: pthread_t

  /// Starts a thread that calls `body` once and owns what that captured. The thread blocks the
  /// signals that its creator blocks.
  public init(_ body: sending @escaping () -> Void) throws(SystemError) {
    var thread = pthread_t()
    let context = unsafe Unmanaged.passRetained(Body(body))
    // SAFETY: the thread takes over the one reference to the body; nobody else has it.
    let result = unsafe pthread_create(
      &thread, nil,
      { context in
        unsafe Unmanaged<Body>.fromOpaque(context!).takeRetainedValue().run()
        return nil
      }, context.toOpaque())
    guard result == 0 else {
      unsafe context.release()
      throw SystemError(errno: result, call: "pthread_create")
    }
    self.thread = thread
  }

  /// Waits for the end of the function.
  public consuming func join() {
    // The thread was never detached and is joined once, because the value is consumed.
    let result = pthread_join(thread, nil)
    precondition(result == 0, "a thread cannot be joined")
  }

  /// Lets the thread end by itself; nobody can wait for that any more.
  public consuming func detach() {
    let result = pthread_detach(thread)
    precondition(result == 0, "a thread cannot be detached")
  }
}

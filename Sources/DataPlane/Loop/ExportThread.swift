// SPDX-License-Identifier: Apache-2.0
//
// The thread of one export, seen from outside. Source: pthread_create(3).

import LinuxIO
import Synchronization

/// The loop of an export while it runs on a thread of its own. It must be joined.
public struct ExportThread: ~Copyable {
  /// SAFETY: the loop belongs to the thread that started it until the new thread has it; that one
  /// takes over all of it, once.
  @safe private final class Runner: @unchecked Sendable {
    private var loop: ExportLoop

    init(_ loop: consuming ExportLoop) { self.loop = loop }

    func run() -> ExportLoop.Outcome { loop.run() }
  }

  private final class Result: Sendable {
    let outcome = Mutex(ExportLoop.Outcome.abandoned)
  }

  private let thread: OwnThread
  private let result: Result

  /// Starts the loop. `ended` is told of its end.
  public init(_ loop: consuming ExportLoop, ended: EndedCount) throws(SystemError) {
    let result = Result()
    let runner = Runner(loop)
    thread = try OwnThread {
      let outcome = runner.run()
      result.outcome.withLock { $0 = outcome }
      ended.add()
    }
    self.result = result
  }

  /// Waits for the end of the loop, which somebody has ordered, and returns how it ended.
  public consuming func join() -> ExportLoop.Outcome {
    thread.join()
    return result.outcome.withLock { $0 }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Signals that end a verb while it makes a file: the file goes first. Starts a thread.

import ImageTools
import LinuxIO

/// Removes an unfinished file when a signal ends the process.
enum StopSignals {
  /// Watches for SIGINT, SIGTERM and SIGHUP from now on. Call it before other threads are started.
  static func remove(_ file: UnfinishedFile) throws {
    let signals = try Environment.stopSignals()
    try OwnThread {
      do throws(SystemError) {
        var events = try EventLoop()
        try events.add(signals, .readable, token: 0)
        while true {
          _ = events.wait(timeoutMilliseconds: -1)
          let number = SignalQueue.takeNumber(from: signals)
          if number == 0 { continue }
          file.remove()
          Environment.end(by: number)
        }
      } catch {
        report("strata: a signal would not end this process (\(error))")
      }
    }.detach()
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Signals as something to read. Source: signalfd(2).

import Glibc

/// Reading a signalfd.
public enum SignalQueue {
  /// What a signal asks for.
  public enum Request: Sendable {
    case stop
    /// SIGHUP: read the files again that may have changed.
    case reload
  }

  /// Takes one waiting signal.
  public static func take(from descriptor: Int32) -> Request {
    takeNumber(from: descriptor) == SIGHUP ? .reload : .stop
  }

  /// Takes one waiting signal and returns its number; 0 when none waits.
  public static func takeNumber(from descriptor: Int32) -> Int32 {
    var report: [16 of UInt64] = .init(repeating: 0)  // a signalfd_siginfo is 128 bytes
    // SAFETY: the array is 128 bytes long and outlives the call.
    _ = unsafe read(descriptor, &report, 128)
    // ssi_signo is the first member, of 32 bits.
    return Int32(truncatingIfNeeded: report[0])
  }
}

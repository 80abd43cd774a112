// SPDX-License-Identifier: Apache-2.0
//
// Going into the background without losing the news of a failed start. Source: fork(2),
// setsid(2), waitpid(2), pipe(2).

import CLinux
import Glibc

/// The two sides of a process that has split itself.
public enum Background {
  /// The child: serves, and says through `reportReady` that it does.
  case child(ready: TextOutput)
  /// The parent: the child is ready, or has ended with this status.
  case parent(exitStatus: Int32)

  /// Splits the process, which must have one thread. In the parent this returns when the child
  /// is ready or gone.
  public static func enter() throws(SystemError) -> Background {
    var ends: [Int32] = [0, 0]
    // SAFETY: the array has room for both descriptors.
    guard unsafe pipe(&ends) == 0 else {
      throw SystemError(errno: errno, call: "pipe")
    }
    let child = try SystemError.check(clinux_fork(), "fork")
    if child == 0 {
      close(ends[0])
      setsid()
      return .child(ready: TextOutput(descriptor: ends[1]))
    }
    close(ends[1])
    return .parent(exitStatus: try wait(for: child, on: ends[0]))
  }

  private static func wait(for child: Int32, on pipe: Int32) throws(SystemError) -> Int32 {
    defer { close(pipe) }
    var byte: UInt8 = 0
    var count: Int
    repeat {
      // SAFETY: one byte has room for one byte.
      count = unsafe read(pipe, &byte, 1)
    } while count < 0 && errno == EINTR
    if count == 1 { return 0 }
    var status: Int32 = 0
    var result: Int32
    repeat {
      // SAFETY: `status` outlives the call.
      result = unsafe waitpid(child, &status, 0)
    } while result < 0 && errno == EINTR
    guard result == child else { throw SystemError(errno: errno, call: "waitpid") }
    // The low seven bits tell a signal, the next eight a plain end (wait(2)).
    return status & 0x7f == 0 ? (status >> 8) & 0xff : 1
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Lines of text to a descriptor, without buffers that a crash or an _exit would lose.
// Source: write(2).

import Glibc

/// A descriptor that takes text. It does not own the descriptor.
public struct TextOutput: Sendable {
  public let descriptor: Int32

  public init(descriptor: Int32) { self.descriptor = descriptor }

  public static let standardOutput = TextOutput(descriptor: 1)
  public static let standardError = TextOutput(descriptor: 2)

  /// Writes `text` and a line feed, in one piece where the kernel takes it so.
  public func writeLine(_ text: String) throws(SystemError) { try write("\(text)\n") }

  /// Writes `text` as it is.
  public func write(_ text: String) throws(SystemError) {
    let bytes = Array(text.utf8)
    var done = 0
    while done < bytes.count {
      // SAFETY: `done` is inside the array, which outlives the call.
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe Glibc.write(
          descriptor, buffer.baseAddress.map { unsafe $0 + done }, bytes.count - done)
      }
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { throw SystemError(errno: errno, call: "write") }
      done += count
    }
  }

  /// Whether a person may be looking.
  public var isTerminal: Bool { isatty(descriptor) == 1 }

  /// Whether the descriptor is open.
  public var isOpen: Bool { fcntl(descriptor, F_GETFD) >= 0 }

  public func close() { Glibc.close(descriptor) }
}

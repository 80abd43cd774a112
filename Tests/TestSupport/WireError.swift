// SPDX-License-Identifier: Apache-2.0
//
// What can go wrong for the test client.

/// Why the test client gave up.
public enum WireError: Error, Hashable, CustomStringConvertible {
  /// The deadline passed.
  case timedOut(String)
  /// The server closed the connection.
  case ended(String)
  /// The server broke the protocol.
  case violation(String)
  case system(String, errno: Int32)

  public var description: String {
    switch self {
    case .timedOut(let what): "timed out: \(what)"
    case .ended(let what): "the server closed the connection: \(what)"
    case .violation(let what): "the server broke the protocol: \(what)"
    case .system(let call, let errno): "\(call) failed with errno \(errno)"
    }
  }
}

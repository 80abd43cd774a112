// SPDX-License-Identifier: Apache-2.0
//
// Why an address cannot be listened on. This file performs no I/O.

/// A fault of a listening address; the caller adds the address and the way out.
public enum SocketError: Error, Hashable, Sendable {
  case system(SystemError)
  /// A UNIX socket's path is longer than `UnixSocketPath.byteCountMax`.
  case pathTooLong(byteCount: Int)
  case pathEmpty
  /// Something answers at the address.
  case taken
  /// A file that is no socket is at the path.
  case notASocket
  /// Nothing answers at the path, but the socket there belongs to somebody else.
  case foreign(ownerID: UInt32)
  /// A host name that has no address.
  case unknownHost(reason: String)
  /// A descriptor that was passed in is not a listening stream socket.
  case notListening
}

extension SocketError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .system(let error): error.description
    case .pathTooLong(let byteCount):
      "the path has \(byteCount) bytes, and a UNIX socket's path has at most"
        + " \(UnixSocketPath.byteCountMax)"
    case .pathEmpty: "the path is empty"
    case .taken: "the address is taken: something answers there"
    case .notASocket: "a file that is not a socket is there"
    case .foreign(let ownerID): "an old socket of user \(ownerID) is there"
    case .unknownHost(let reason): reason
    case .notListening: "not a listening stream socket"
    }
  }
}

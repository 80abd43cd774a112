// SPDX-License-Identifier: Apache-2.0
//
// A stream socket that waits for clients. Source: unix(7), tcp(7), listen(2), accept(2).

import CLinux
import Glibc

/// A bound, listening, non-blocking socket; closed with the last reference.
///
/// A class, because a list of them is kept and noncopyable values do not go into an array.
public final class ListeningSocket: Sendable {
  public let descriptor: Int32
  /// What this process made in the file system, to be removed at the end.
  private let file: (path: String, identity: FileIdentity)?

  private init(descriptor: Int32, file: (path: String, identity: FileIdentity)? = nil) {
    self.descriptor = descriptor
    self.file = file
  }

  deinit { close(descriptor) }

  /// Clients that may wait for accept(2); the kernel cuts it to net.core.somaxconn.
  private static let backlogMax: Int32 = 1_024

  /// Listens at `path`, with `mode` from the first moment and `owner` before anybody can connect.
  ///
  /// A socket that nobody answers is replaced when it belongs to this user or to `owner`.
  public static func unix(
    at path: UnixSocketPath, mode: UInt32, owner: (userID: UInt32, groupID: UInt32)?
  ) throws(SocketError) -> ListeningSocket {
    let descriptor = clinux_socket(AF_UNIX, Int32(SOCK_STREAM.rawValue))
    guard descriptor >= 0 else { throw .system(SystemError(errno: -descriptor, call: "socket")) }
    var ownerIDs = [geteuid()]
    if let owner { ownerIDs.append(owner.userID) }
    var identity: FileIdentity?
    do throws(SocketError) {
      try path.withFolderLocked { () throws(SocketError) in
        try path.removeStale(ownerIDs: ownerIDs)
        try path.bind(descriptor, mode: mode)
        identity = FileIdentity(ofPath: path.text)
        // SAFETY: the path outlives the call.
        if let owner, unsafe lchown(path.text, owner.userID, owner.groupID) != 0 {
          let error = SystemError(errno: errno, call: "chown")
          _ = identity?.remove(at: path.text)
          throw .system(error)
        }
        try listen(on: descriptor)
      }
    } catch {
      close(descriptor)
      throw error
    }
    return ListeningSocket(descriptor: descriptor, file: identity.map { (path.text, $0) })
  }

  /// Listens at a TCP address; port 0 lets the kernel choose one.
  public static func tcp(at address: SocketAddress) throws(SocketError) -> ListeningSocket {
    let descriptor = clinux_socket(address.family, Int32(SOCK_STREAM.rawValue))
    guard descriptor >= 0 else { throw .system(SystemError(errno: -descriptor, call: "socket")) }
    do throws(SocketError) {
      try set(descriptor, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR")
      // Accepted sockets inherit it. Without it a small reply may wait 40 ms for an ACK.
      try set(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, "TCP_NODELAY")
      if address.family == AF_INET6 {
        try set(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, "IPV6_V6ONLY")
      }
      try address.bind(descriptor)
      try listen(on: descriptor)
    } catch {
      close(descriptor)
      throw error
    }
    return ListeningSocket(descriptor: descriptor)
  }

  /// Listens at an abstract name, which has no file, no mode and no owner (unix(7)).
  public static func abstract(_ name: String) throws(SocketError) -> ListeningSocket {
    let bytes = [0] + Array(name.utf8)
    guard bytes.count > 1 else { throw .pathEmpty }
    guard bytes.count <= UnixSocketPath.byteCountMax else {
      throw .pathTooLong(byteCount: bytes.count)
    }
    let descriptor = clinux_socket(AF_UNIX, Int32(SOCK_STREAM.rawValue))
    guard descriptor >= 0 else { throw .system(SystemError(errno: -descriptor, call: "socket")) }
    // SAFETY: the bytes outlive the call, which copies them.
    let result = unsafe clinux_bind_unix(descriptor, bytes, bytes.count)
    return try finish(descriptor, bound: result)
  }

  /// Listens at a port for virtual machines of this host, or on one for its host (vsock(7)).
  public static func vsock(port: UInt32) throws(SocketError) -> ListeningSocket {
    let descriptor = clinux_socket(AF_VSOCK, Int32(SOCK_STREAM.rawValue))
    guard descriptor >= 0 else { throw .system(SystemError(errno: -descriptor, call: "socket")) }
    return try finish(descriptor, bound: clinux_bind_vsock(descriptor, port))
  }

  private static func finish(
    _ descriptor: Int32, bound result: Int32
  ) throws(SocketError) -> ListeningSocket {
    do throws(SocketError) {
      guard result == 0 else {
        throw result == -EADDRINUSE ? .taken : .system(SystemError(errno: -result, call: "bind"))
      }
      try listen(on: descriptor)
    } catch {
      close(descriptor)
      throw error
    }
    return ListeningSocket(descriptor: descriptor)
  }

  /// Takes over a socket that the service manager passed (sd_listen_fds(3)).
  public static func adopt(_ descriptor: Int32) throws(SocketError) -> ListeningSocket {
    guard try option(descriptor, SO_ACCEPTCONN) == 1,
      try option(descriptor, SO_TYPE) == Int32(SOCK_STREAM.rawValue)
    else { throw .notListening }
    guard fcntl(descriptor, F_SETFD, FD_CLOEXEC) == 0 else {
      throw .system(SystemError(errno: errno, call: "FD_CLOEXEC"))
    }
    let result = clinux_set_nonblocking(descriptor)
    guard result >= 0 else { throw .system(SystemError(errno: -result, call: "O_NONBLOCK")) }
    return ListeningSocket(descriptor: descriptor)
  }

  /// The TCP address that the kernel bound; nil for a UNIX socket.
  public func boundAddress() -> SocketAddress? { SocketAddress(boundTo: descriptor) }

  /// Removes the socket file, if this process made it and it is still there.
  ///
  /// - Returns: false when it has to stay, because the folder belongs to somebody else.
  public func removeFile() -> Bool {
    guard let file else { return true }
    return file.identity.remove(at: file.path)
  }

  private static func listen(on descriptor: Int32) throws(SocketError) {
    guard Glibc.listen(descriptor, backlogMax) == 0 else {
      throw errno == EADDRINUSE ? .taken : .system(SystemError(errno: errno, call: "listen"))
    }
  }

  private static func set(
    _ descriptor: Int32, _ level: Int32, _ name: Int32, _ call: String
  ) throws(SocketError) {
    let result = clinux_set_socket_option(descriptor, level, name, 1)
    guard result >= 0 else { throw .system(SystemError(errno: -result, call: call)) }
  }

  private static func option(_ descriptor: Int32, _ name: Int32) throws(SocketError) -> Int32 {
    var value: Int32 = 0
    var byteCount = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: both outlive the call, which writes at most `byteCount` bytes.
    guard unsafe getsockopt(descriptor, SOL_SOCKET, name, &value, &byteCount) == 0 else {
      throw errno == ENOTSOCK
        ? .notListening : .system(SystemError(errno: errno, call: "getsockopt"))
    }
    return value
  }
}

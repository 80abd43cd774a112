// SPDX-License-Identifier: Apache-2.0
//
// Sockets that a service manager would have made. Source: sd_notify(3), sd_listen_fds(3).

import Foundation

private func bindUnix(_ path: String, _ type: __socket_type) throws -> Int32 {
  let descriptor = socket(AF_UNIX, Int32(type.rawValue | SOCK_CLOEXEC.rawValue), 0)
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
  let size = socklen_t(MemoryLayout<sockaddr_un>.size)
  let result = withUnsafePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, size) }
  }
  guard descriptor >= 0, result == 0 else { throw ServeError("bind \(path): errno \(errno)") }
  return descriptor
}

/// The end of a manager's notification socket.
final class NotifyListener {
  let path: String
  private let descriptor: Int32

  init(_ path: String) throws {
    self.path = path
    descriptor = try bindUnix(path, SOCK_DGRAM)
  }

  deinit { close(descriptor) }

  /// The next message; throws when none comes within ten seconds.
  func receive() throws -> String {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    guard poll(&entry, 1, 10_000) == 1 else { throw ServeError("no message") }
    var bytes = [UInt8](repeating: 0, count: 4_096)
    let count = recv(descriptor, &bytes, bytes.count, 0)
    return String(decoding: bytes[..<max(0, count)], as: UTF8.self)
  }
}

/// A listening socket to be passed to a server.
final class PassedListener {
  let descriptor: Int32

  init(_ path: String) throws {
    descriptor = try bindUnix(path, SOCK_STREAM)
    guard listen(descriptor, 16) == 0 else { throw ServeError("listen: errno \(errno)") }
  }

  deinit { close(descriptor) }
}

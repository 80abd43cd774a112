// SPDX-License-Identifier: Apache-2.0
//
// The sockets of an export: a UNIX path, TCP addresses, what the service manager passed, and the
// control socket.
// Policy: TCP for which TLS is not required stays on this machine unless the user says otherwise.

import Glibc
import LinuxIO
import NBDProtocol
import Sandbox

/// All sockets that clients of the export may connect to.
struct Listeners {
  private(set) var sockets: [ListeningSocket] = []
  /// The absolute path of the UNIX socket, when there is one.
  private(set) var unixPath: String?

  /// Descriptors for the data plane, which does not own them.
  var descriptors: [Int32] { sockets.map(\.descriptor) }

  /// Opens all of them, or none.
  ///
  /// - Parameter passedCount: sockets that the service manager passed, from descriptor 3 on.
  init(_ config: ExportConfig, passedCount: Int) throws(ControlError) {
    do throws(ControlError) {
      for index in 0..<passedCount {
        try adopt(ServiceManager.firstDescriptor + Int32(index), config)
      }
      if let endpoint = config.tcpEndpoint { try listen(at: endpoint, config) }
      if let path = config.socketPath { try listen(at: path, config) }
    } catch {
      removeFiles()
      throw error
    }
    guard !sockets.isEmpty else {
      throw ControlError(
        nil, "no address to listen on", wayOut: "say --socket PATH or --tcp HOST:PORT")
    }
  }

  /// Takes away what was made in the file system. A socket in a folder that the worker may not
  /// change has to stay; the next server at its path replaces it.
  func removeFiles() {
    for socket in sockets { _ = socket.removeFile() }
  }

  /// What to tell QEMU; nil when only unnamed sockets were passed.
  func driveLine(tls: TLSPolicy) -> String? {
    let needsTLS = tls == .required
    if let unixPath { return DriveLine.text(unixPath: unixPath, needsTLS: needsTLS) }
    let address = sockets.lazy.compactMap { $0.boundAddress() }.first
    return address.map { DriveLine.text(tcp: $0, needsTLS: needsTLS) }
  }

  private mutating func adopt(_ descriptor: Int32, _ config: ExportConfig) throws(ControlError) {
    let subject = "LISTEN_FDS (descriptor \(descriptor))"
    do throws(SocketError) {
      sockets.append(try ListeningSocket.adopt(descriptor))
    } catch {
      throw ControlError(subject, error)
    }
    if let address = sockets[sockets.count - 1].boundAddress() {
      try Listeners.requirePrivate(address, subject, config)
    }
  }

  private mutating func listen(at path: String, _ config: ExportConfig) throws(ControlError) {
    sockets.append(
      try Listeners.unixSocket(
        at: path, mode: config.socketMode, owner: config.socketOwner, "socket \(path)"))
    unixPath = try Listeners.absolute(path)
  }

  /// The socket that oversees the export, when the user wants one. The caller removes its file.
  static func controlSocket(_ config: ExportConfig) throws(ControlError) -> ListeningSocket? {
    guard let path = config.controlPath else { return nil }
    return try unixSocket(
      at: path, mode: controlMode, owner: config.socketOwner, "control socket \(path)")
  }

  /// Who may end clients is nobody but the owner, whoever may be a client.
  private static let controlMode: UInt32 = 0o600

  private static func unixSocket(
    at path: String, mode: UInt32, owner text: String?, _ subject: String
  ) throws(ControlError) -> ListeningSocket {
    var owner: Identity?
    do throws(SandboxError) {
      if let text { owner = try Identity(parsing: text) }
    } catch {
      throw ControlError("--socket-owner", error)
    }
    do throws(SocketError) {
      return try ListeningSocket.unix(
        at: try UnixSocketPath(path), mode: mode, owner: owner.map { ($0.userID, $0.groupID) })
    } catch {
      throw ControlError(subject, error)
    }
  }

  private mutating func listen(
    at endpoint: TCPEndpoint, _ config: ExportConfig
  ) throws(ControlError) {
    let subject = "TCP \(endpoint.host ?? "*"):\(endpoint.port)"
    let addresses = try Listeners.resolve(endpoint, subject)
    for address in addresses { try Listeners.requirePrivate(address, subject, config) }
    var port = endpoint.port
    var absence: SocketError?
    let formerCount = sockets.count
    for address in addresses {
      do throws(SocketError) {
        let socket = try ListeningSocket.tcp(at: address.with(port: port))
        sockets.append(socket)
        // When the kernel chose the port, the other addresses of the host get the same.
        port = socket.boundAddress()?.port ?? port
      } catch {
        guard Listeners.meansAbsentFamily(error) else { throw ControlError(subject, error) }
        absence = error
      }
    }
    if let absence, sockets.count == formerCount { throw ControlError(subject, absence) }
  }

  /// A machine without IPv6 (or IPv4) serves on what it has.
  private static func meansAbsentFamily(_ error: SocketError) -> Bool {
    guard case .system(let error) = error else { return false }
    return error.errno == EAFNOSUPPORT || error.errno == EADDRNOTAVAIL
  }

  private static func resolve(
    _ endpoint: TCPEndpoint, _ subject: String
  ) throws(ControlError) -> [SocketAddress] {
    do throws(SocketError) {
      return try SocketAddress.resolve(host: endpoint.host, port: endpoint.port)
    } catch {
      throw ControlError(subject, error)
    }
  }

  private static func requirePrivate(
    _ address: SocketAddress, _ subject: String, _ config: ExportConfig
  ) throws(ControlError) {
    let isSafe = address.isLoopback || config.tls.policy == .required
    guard isSafe || config.allowsTCPWithoutTLS else {
      throw ControlError(
        subject, "other machines could read and write the disk, and TLS is not required",
        wayOut: "say --tls required, listen on 127.0.0.1 or --socket, or say --tcp-without-tls")
    }
  }

  private static func absolute(_ path: String) throws(ControlError) -> String {
    if path.hasPrefix("/") { return path }
    do throws(SystemError) {
      let folder = try Environment.currentFolder()
      return folder == "/" ? "/\(path)" : "\(folder)/\(path)"
    } catch {
      throw ControlError("socket \(path)", error)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The sockets of a server: UNIX paths and abstract names, TCP addresses, ports for virtual
// machines, what it inherited or the service manager passed, and the control socket.
// Policy: TCP for which TLS is not required stays on this machine unless the user says otherwise.

import Glibc
import LinuxIO
import Sandbox

/// All sockets that clients may connect to.
struct Listeners {
  private(set) var sockets: [ListeningSocket] = []
  /// The absolute path of the first UNIX socket, when there is one.
  private(set) var unixPath: String?
  private let addresses: AddressConfig
  private let isTLSRequired: Bool

  /// Descriptors for the data plane, which does not own them.
  var descriptors: [Int32] { sockets.map(\.descriptor) }

  /// Opens all of them, or none.
  ///
  /// - Parameter passed: what the service manager passed.
  init(
    _ config: ServerConfig, passed: [ServiceManager.PassedSocket]
  ) throws(ControlError) {
    addresses = config.addresses
    isTLSRequired = config.tlsPolicy == .required
    do throws(ControlError) {
      for socket in passed where !socket.isForControl {
        try adopt(socket.descriptor, "LISTEN_FDS (descriptor \(socket.descriptor))")
      }
      for descriptor in addresses.descriptors {
        try adopt(descriptor, "--fd \(descriptor)")
      }
      for endpoint in addresses.tcpEndpoints { try listen(at: endpoint) }
      for port in addresses.vsockPorts { try listen(atVsock: port) }
      for path in addresses.socketPaths {
        if path.hasPrefix("@") {
          try listen(atAbstract: String(path.dropFirst()), config)
        } else {
          try listen(at: path)
        }
      }
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
  ///
  /// - Parameters:
  ///   - export: the name to ask for; nil for the one that answers to no name.
  ///   - needsTLS: the export cannot be used without.
  func driveLine(export: String?, needsTLS: Bool) -> String? {
    if let unixPath {
      return DriveLine.text(unixPath: unixPath, export: export, needsTLS: needsTLS)
    }
    let address = sockets.lazy.compactMap { $0.boundAddress() }.first
    return address.map { DriveLine.text(tcp: $0, export: export, needsTLS: needsTLS) }
  }

  private mutating func adopt(_ descriptor: Int32, _ subject: String) throws(ControlError) {
    do throws(SocketError) {
      sockets.append(try ListeningSocket.adopt(descriptor))
    } catch {
      throw ControlError(subject, error)
    }
    if let address = sockets[sockets.count - 1].boundAddress() {
      try requirePrivate(address, subject)
    }
  }

  private mutating func listen(at path: String) throws(ControlError) {
    sockets.append(
      try Listeners.unixSocket(
        at: path, mode: addresses.socketMode, owner: addresses.socketOwner, "socket \(path)"))
    if unixPath == nil { unixPath = try Listeners.absolute(path) }
  }

  /// An abstract name has no mode: whoever shares the network may connect to it.
  private mutating func listen(
    atAbstract name: String, _ config: ServerConfig
  ) throws(ControlError) {
    let subject = "socket @\(name)"
    for export in config.exports {
      let access = export.access
      guard
        !access.allowedUsers.isEmpty || !access.allowedGroups.isEmpty
          || access.requiresTLS(config.tls)
      else {
        throw ControlError(
          subject, "every user of this machine could connect to it and use '\(export.shownName)'",
          wayOut: "say --allow-uid USER, or listen at a path")
      }
    }
    do throws(SocketError) {
      sockets.append(try ListeningSocket.abstract(name))
    } catch {
      throw ControlError(subject, error)
    }
  }

  private mutating func listen(atVsock port: UInt32) throws(ControlError) {
    do throws(SocketError) {
      sockets.append(try ListeningSocket.vsock(port: port))
    } catch {
      throw ControlError("vsock port \(port)", error)
    }
  }

  /// The socket that oversees the exports, when the user wants one or the service manager passed
  /// one. The caller removes its file.
  static func controlSocket(
    _ addresses: AddressConfig, passed: [ServiceManager.PassedSocket]
  ) throws(ControlError) -> ListeningSocket? {
    if let socket = passed.first(where: \.isForControl) {
      do throws(SocketError) {
        return try ListeningSocket.adopt(socket.descriptor)
      } catch {
        throw ControlError("LISTEN_FDS (descriptor \(socket.descriptor))", error)
      }
    }
    guard let path = addresses.controlPath else { return nil }
    return try unixSocket(
      at: path, mode: controlMode, owner: addresses.socketOwner, "control socket \(path)")
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

  private mutating func listen(at endpoint: TCPEndpoint) throws(ControlError) {
    let subject = "TCP \(endpoint.host ?? "*"):\(endpoint.port)"
    let found = try Listeners.resolve(endpoint, subject)
    for address in found { try requirePrivate(address, subject) }
    var port = endpoint.port
    var absence: SocketError?
    let formerCount = sockets.count
    for address in found {
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

  private func requirePrivate(
    _ address: SocketAddress, _ subject: String
  ) throws(ControlError) {
    guard address.isLoopback || isTLSRequired || addresses.allowsTCPWithoutTLS else {
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

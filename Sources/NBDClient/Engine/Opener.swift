// SPDX-License-Identifier: Apache-2.0
//
// From a URI to a connection whose handshake is done. This file performs socket I/O and, for a
// host's name, asks the system's resolver, which no deadline of ours can stop.

import BlockTypes
import LinuxIO
import NBDProtocol

/// Opens connections to one server, on the thread of the caller.
struct Opener {
  /// What a handshake led to.
  enum Opened {
    case session(Transport, ClientSession, rest: ArraySlice<UInt8>)
    case list([ExportDetails], mode: ProtocolMode)
  }

  let uri: NBDURI
  let mailbox: Mailbox
  /// The host's addresses, where they are known: nobody is asked for them then.
  var addresses: [SocketAddress]?

  /// Connects and negotiates once, until `deadline` (of the monotonic clock, in nanoseconds).
  func open(_ goal: ClientGoal, deadline: UInt64) throws(NBDClientFault) -> Opened {
    let transport = try connect(deadline)
    var handshake = ClientHandshake(goal)
    var bytes = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      try send(handshake.takeOutput(), transport, deadline)
      switch transport.receive(into: &bytes) {
      case .bytes(let count):
        let consumed = handshake.receive(bytes[..<count])
        switch handshake.outcome {
        case .negotiating: break
        case .startTLS: throw .unsupported("TLS is not built in")
        case .ready(let session): return .session(transport, session, rest: bytes[consumed..<count])
        case .listed(let exports, let mode):
          // Leaving politely is a wish: the list is here.
          _ = transport.send(handshake.takeOutput()[...])
          return .list(exports, mode: mode)
        case .refused(let reason): throw .refused(reason)
        case .violated(let violation): throw .violated(violation)
        }
      case .wouldBlock: try wait(transport, forOutput: false, deadline)
      case .closed:
        handshake.end()
        guard case .refused(let reason) = handshake.outcome else {
          throw .lost("the server closed the connection during the handshake")
        }
        throw .refused(reason)
      }
    }
  }

  private func send(
    _ bytes: [UInt8], _ transport: Transport, _ deadline: UInt64
  ) throws(NBDClientFault) {
    var rest = bytes[...]
    while !rest.isEmpty {
      switch transport.send(rest) {
      case .bytes(let count): rest = rest.dropFirst(count)
      case .wouldBlock: try wait(transport, forOutput: true, deadline)
      // What the server said before it left is still to be read.
      case .closed: return
      }
    }
  }

  private func wait(
    _ transport: Transport, forOutput: Bool, _ deadline: UInt64
  ) throws(NBDClientFault) {
    let now = MonotonicClock.nanoseconds
    guard now < deadline else {
      throw .timedOut("no connection and handshake in time")
    }
    guard !mailbox.isClosing else { throw .closed }
    ByteSocket.wait(
      socket: transport.descriptor, forOutput: forOutput, bell: mailbox.bellDescriptor,
      milliseconds: Int32(min((deadline - now) / 1_000_000 + 1, 1_000)))
  }

  private func connect(_ deadline: UInt64) throws(NBDClientFault) -> SocketTransport {
    guard !uri.requiresTLS else {
      throw .unsupported("TLS is not built in, and nbds: never goes without it")
    }
    switch uri.endpoint {
    case .unix(let path): return try connect(toUnix: path)
    case .vsock(let contextID, let port):
      return try finish(deadline) { () throws(SystemError) in
        try ByteSocket(connectingToVsock: contextID, port: port)
      }
    case .tcp(let host, let port):
      let addresses: [SocketAddress]
      if let known = self.addresses {
        addresses = known
      } else {
        addresses = try Opener.resolve(host, port)
      }
      var last = NBDClientFault.unreachable("the host has no address")
      for address in addresses {
        do throws(NBDClientFault) {
          return try finish(deadline) { () throws(SystemError) in
            try ByteSocket(connectingTo: address)
          }
        } catch {
          last = error
        }
      }
      throw last
    }
  }

  private static func resolve(
    _ host: String?, _ port: UInt16
  ) throws(NBDClientFault) -> [SocketAddress] {
    do throws(SocketError) {
      return try SocketAddress.resolve(host: host ?? "localhost", port: port)
    } catch {
      throw .unreachable("\(error)")
    }
  }

  /// Asks for the host's addresses once and for all, so that connecting again opens no file.
  mutating func rememberAddresses() throws(NBDClientFault) {
    if case .tcp(let host, let port) = uri.endpoint {
      addresses = try Opener.resolve(host, port)
    }
  }

  private func connect(toUnix path: String) throws(NBDClientFault) -> SocketTransport {
    let address: UnixSocketPath
    do throws(SocketError) {
      address = try UnixSocketPath(path)
    } catch {
      throw .unreachable("\(error)")
    }
    do throws(SystemError) {
      return SocketTransport(try ByteSocket(connectingTo: address))
    } catch {
      throw .unreachable("\(error)")
    }
  }

  /// Waits for the end of a connect that was started.
  private func finish(
    _ deadline: UInt64, _ start: () throws(SystemError) -> ByteSocket
  ) throws(NBDClientFault) -> SocketTransport {
    let transport: SocketTransport
    do throws(SystemError) {
      transport = SocketTransport(try start())
    } catch {
      throw .unreachable("\(error)")
    }
    // Writable means decided; the first wait may end early, because the bell rang.
    while !transport.isDecided {
      try wait(transport, forOutput: true, deadline)
    }
    if let error = transport.connectionError() { throw .unreachable("\(error)") }
    return transport
  }
}

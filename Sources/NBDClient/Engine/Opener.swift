// SPDX-License-Identifier: Apache-2.0
//
// From a URI to a connection whose handshake is done, TLS included. This file performs socket I/O
// and reads certificates and keys.

import BlockTypes
import LinuxIO
import NBDProtocol
import TLS

/// Opens connections to one server, on the thread of the caller.
struct Opener {
  /// What a handshake led to.
  enum Opened {
    case session(any Transport, ClientSession, rest: ArraySlice<UInt8>)
    case list(NBDConnection.Listing)
  }

  let uri: NBDURI
  let tls: ClientTLS
  let mailbox: Mailbox
  /// What is known already, so that connecting again opens no file.
  private var prepared: Prepared?

  private struct Prepared {
    /// nil where the address is no host.
    var addresses: [SocketAddress]?
    var plan: TLSClientPlan?
  }

  init(uri: NBDURI, tls: ClientTLS, mailbox: Mailbox) {
    self.uri = uri
    self.tls = tls
    self.mailbox = mailbox
  }

  /// Looks the host up and reads what TLS needs, once and for all, on the thread of the caller.
  mutating func prepare() throws(NBDClientFault) {
    var prepared = Prepared(plan: try tls.plan(for: uri))
    if case .tcp(let host, let port) = uri.endpoint {
      do throws(SocketError) {
        prepared.addresses = try SocketAddress.resolve(host: host ?? "localhost", port: port)
      } catch {
        throw .unreachable("\(host ?? "localhost"): \(error)")
      }
    }
    self.prepared = prepared
  }

  /// Connects and negotiates once, until `deadline` (of the monotonic clock, in nanoseconds).
  ///
  /// What TLS needs is read before anybody is called. Where TLS is required, nothing but STARTTLS
  /// is said before it is up and the server has proved itself.
  func open(_ goal: ClientGoal, deadline: UInt64) throws(NBDClientFault) -> Opened {
    let dialer = dialer(deadline)
    var goal = goal
    switch try tls.use(for: uri) {
    case .off: goal.tls = .never
    case .offered: goal.tls = .offered
    case .required: goal.tls = .required
    }
    let plan: TLSClientPlan?
    if let prepared { plan = prepared.plan } else { plan = try tls.plan(for: uri) }
    var transport: any Transport = try connect(dialer)
    var handshake = ClientHandshake(goal)
    var bytes = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      try send(handshake.takeOutput(), transport, dialer)
      switch transport.receive(into: &bytes) {
      case .bytes(let count):
        let consumed = handshake.receive(bytes[..<count])
        switch handshake.outcome {
        case .negotiating: break
        case .startTLS:
          // The machine has seen to it that nothing came behind the answer.
          transport = try secure(transport, plan, dialer)
          handshake.continueEncrypted()
        case .ready(let session): return .session(transport, session, rest: bytes[consumed..<count])
        case .listed(let exports, let mode):
          leave(transport, handshake.takeOutput(), dialer)
          return .list(
            NBDConnection.Listing(
              exports: exports, mode: mode, isEncrypted: handshake.isEncrypted))
        case .refused(let reason): throw .refused(reason)
        case .insecure(let reason): throw .insecure(reason)
        case .violated(let violation): throw .violated(violation)
        }
      case .wouldBlock: try wait(transport, dialer)
      case .closed:
        handshake.end()
        let reason = transport.endReason
        guard reason == nil, case .refused(let words) = handshake.outcome else {
          throw .lost(reason ?? "the server closed the connection during the handshake")
        }
        throw .refused(words)
      }
    }
  }

  private func dialer(_ deadline: UInt64) -> Dialer {
    Dialer(deadline: deadline, bell: mailbox.bellDescriptor) { [mailbox] in
      // Requests may wait; they do not end the wait for a connection.
      mailbox.hush()
      return mailbox.isClosing
    }
  }

  /// Begins TLS and waits until the server has proved itself.
  private func secure(
    _ inner: any Transport, _ plan: TLSClientPlan?, _ dialer: Dialer
  ) throws(NBDClientFault) -> any Transport {
    guard let plan else { preconditionFailure("TLS was agreed on without a plan for it") }
    let transport: TLSTransport
    do throws(TLSFault) {
      transport = TLSTransport(inner, try plan.makeSession())
    } catch {
      throw .unsupported("TLS: \(error)")
    }
    while try !transport.handshake() { try wait(transport, dialer) }
    return transport
  }

  private func send(
    _ bytes: [UInt8], _ transport: any Transport, _ dialer: Dialer
  ) throws(NBDClientFault) {
    var rest = bytes[...]
    while !rest.isEmpty {
      switch transport.send(rest) {
      case .bytes(let count): rest = rest.dropFirst(count)
      case .wouldBlock: try wait(transport, dialer, forOutput: true)
      // What the server said before it left is still to be read.
      case .closed: return
      }
    }
  }

  /// Leaving politely is a wish: the list is here. TLS is ended on both sides within a second.
  private func leave(_ transport: any Transport, _ bytes: [UInt8], _ dialer: Dialer) {
    _ = transport.send(bytes[...])
    guard transport.sayGoodbye() else { return }
    let end = min(
      dialer.deadline, MonotonicClock.nanoseconds + Engine.goodbyeNanosecondsMax)
    var dropped = [UInt8](repeating: 0, count: 4096)
    while MonotonicClock.nanoseconds < end, !mailbox.isClosing {
      switch transport.receive(into: &dropped) {
      case .bytes: break
      case .closed: return
      case .wouldBlock:
        ByteSocket.wait(
          socket: transport.descriptor, forOutput: transport.hasUnsent, bell: -1,
          milliseconds: 100)
        if transport.hasUnsent { _ = transport.send([]) }
      }
    }
  }

  private func wait(
    _ transport: any Transport, _ dialer: Dialer, forOutput: Bool = false
  ) throws(NBDClientFault) {
    // What was left of a send goes out before the server can be expected to answer.
    if transport.hasUnsent { _ = transport.send([]) }
    do throws(Dialer.Fault) {
      try dialer.wait(for: transport.descriptor, forOutput: forOutput || transport.hasUnsent)
    } catch {
      throw NBDClientFault(error)
    }
  }

  private func connect(_ dialer: Dialer) throws(NBDClientFault) -> SocketTransport {
    let target: Dialer.Target =
      switch uri.endpoint {
      case .unix(let path): .unix(path: path)
      case .vsock(let contextID, let port): .vsock(contextID: contextID, port: port)
      case .tcp(let host, let port):
        if let addresses = prepared?.addresses {
          .addresses(addresses)
        } else {
          .tcp(host: host ?? "localhost", port: port)
        }
      }
    do throws(Dialer.Fault) {
      return SocketTransport(try dialer.connect(to: target))
    } catch {
      throw NBDClientFault(error)
    }
  }
}

extension NBDClientFault {
  fileprivate init(_ fault: Dialer.Fault) {
    switch fault {
    case .unreachable(let reason): self = .unreachable(reason)
    case .timedOut: self = .timedOut("no connection and handshake in time")
    case .givenUp: self = .closed
    }
  }
}

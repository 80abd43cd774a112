// SPDX-License-Identifier: Apache-2.0
//
// From an address to a connected socket within a deadline: names are looked up, and each address
// of a name is tried. Source: connect(2), unix(7) (EAGAIN), vsock(7), getaddrinfo(3). This file
// waits, and starts a thread for a name.

/// Connects to servers on behalf of one thread.
public struct Dialer {
  /// Where a server listens.
  public enum Target: Hashable, Sendable {
    /// A leading NUL means an abstract address (unix(7)).
    case unix(path: String)
    case tcp(host: String, port: UInt16)
    /// Those of a host that was looked up before; the first that answers is taken.
    case addresses([SocketAddress])
    case vsock(contextID: UInt32, port: UInt32)
  }

  /// Why there is no connection.
  public enum Fault: Error, Hashable, Sendable {
    /// Nobody answers there; a sentence without the address.
    case unreachable(String)
    case timedOut
    /// `isGivenUp` said so.
    case givenUp
  }

  /// Of the monotonic clock, in nanoseconds.
  public let deadline: UInt64
  /// Ends each wait when it rings, so that `isGivenUp` is asked; -1 for none.
  public let bell: Int32
  private let isGivenUp: () -> Bool

  public init(
    deadline: UInt64, bell: Int32 = -1, isGivenUp: @escaping () -> Bool = { false }
  ) {
    self.deadline = deadline
    self.bell = bell
    self.isGivenUp = isGivenUp
  }

  /// Connects, or says why that does not work at any of the addresses.
  public func connect(to target: Target) throws(Fault) -> ByteSocket {
    switch target {
    case .unix(let path): return try connect(toUnix: path)
    case .vsock(let contextID, let port):
      return try finish { () throws(SystemError) in
        try ByteSocket(connectingToVsock: contextID, port: port)
      }
    case .tcp(let host, let port): return try connect(toAny: try addresses(of: host, port))
    case .addresses(let addresses): return try connect(toAny: addresses)
    }
  }

  private func connect(toAny addresses: [SocketAddress]) throws(Fault) -> ByteSocket {
    var last = Fault.unreachable("the host has no address")
    for address in addresses {
      do throws(Fault) {
        return try finish { () throws(SystemError) in try ByteSocket(connectingTo: address) }
      } catch {
        guard case .unreachable(let reason) = error else { throw error }
        last = .unreachable("\(address): \(reason)")
      }
    }
    throw last
  }

  /// Ends early when the bell rings; throws at the deadline, and when all is given up.
  public func wait(for descriptor: Int32, forOutput: Bool) throws(Fault) {
    let now = MonotonicClock.nanoseconds
    guard now < deadline else { throw .timedOut }
    guard !isGivenUp() else { throw .givenUp }
    ByteSocket.wait(
      socket: descriptor, forOutput: forOutput, bell: bell,
      milliseconds: Int32(min((deadline - now) / 1_000_000 + 1, 1_000)))
  }

  private func addresses(of host: String, _ port: UInt16) throws(Fault) -> [SocketAddress] {
    let lookUp: LookUp<[SocketAddress]>
    do throws(SocketError) {
      if let number = try SocketAddress.number(host, port: port) { return number }
      lookUp = try LookUp { () throws(SocketError) in
        try SocketAddress.resolve(host: host, port: port)
      }
    } catch {
      throw .unreachable("\(host): \(error)")
    }
    return try wait(for: lookUp, host)
  }

  /// Waits for the end of a look-up until the deadline. Nobody can end a look-up: one that takes
  /// longer goes on by itself, and what it finds is dropped.
  func wait<Value>(for lookUp: LookUp<Value>, _ host: String) throws(Fault) -> Value {
    while true {
      do throws(SocketError) {
        if let value = try lookUp.result() { return value }
      } catch {
        throw .unreachable("\(host): \(error)")
      }
      try wait(for: lookUp.descriptor, forOutput: false)
    }
  }

  /// A full queue of others who wait to be accepted is EAGAIN, and nothing tells when it ends.
  private func connect(toUnix text: String) throws(Fault) -> ByteSocket {
    let path: UnixSocketPath
    do throws(SocketError) { path = try UnixSocketPath(text) } catch {
      throw .unreachable("\(error)")
    }
    while true {
      do throws(SystemError) { return try ByteSocket(connectingTo: path) } catch {
        guard error.isTryAgain else { throw .unreachable("\(error)") }
      }
      guard MonotonicClock.nanoseconds < deadline else { throw .timedOut }
      guard !isGivenUp() else { throw .givenUp }
      MonotonicClock.sleep(milliseconds: 5)
    }
  }

  /// Waits for the end of a connect that was started.
  private func finish(
    _ start: () throws(SystemError) -> ByteSocket
  ) throws(Fault) -> ByteSocket {
    let socket: ByteSocket
    do throws(SystemError) { socket = try start() } catch { throw .unreachable("\(error)") }
    // Writable means decided; a wait may end early, because the bell rang.
    while !socket.wait(for: .output, milliseconds: 0) {
      try wait(for: socket.descriptor, forOutput: true)
    }
    if let error = socket.connectionError() { throw .unreachable("\(error)") }
    return socket
  }
}

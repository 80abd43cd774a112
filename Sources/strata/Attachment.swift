// SPDX-License-Identifier: Apache-2.0
//
// From a URI to an attached device: handshakes here, requests by the kernel. This file talks to the
// server and to the kernel.

import Control
import KernelNBD
import LinuxIO
import NBDClient
import NBDProtocol
import Synchronization

/// One device that is to be attached, or to get new connections.
struct Attachment {
  let uri: NBDURI
  let options: ClientOptions
  let wishes: AttachSettings.Wishes
  let isReconfiguring: Bool
  /// Whether this process carries the bytes between the kernel and the server.
  let isRelayed: Bool
  /// nil: by ioctl.
  let driver: NetlinkDriver?

  /// Attaches, calls `announce` with the device, and does what this process is needed for until the
  /// device is detached or all connections are lost.
  func run(announce: (DeviceName) throws -> Void) throws {
    let first = try open()
    let settings = try about(uri) { () throws(AttachFault) in
      try AttachSettings(
        first.session.export, wishes, pageByteCount: Environment.pageByteCount)
    }
    var connections = [first]
    while connections.count < wishes.connectionCount {
      let next = try open()
      guard next.session == first.session else {
        throw ControlError(
          "\(uri)", "the server told one connection something else than another one")
      }
      connections.append(next)
    }
    let relay = Relay()
    let sockets = try connections.map { try lend($0, relay) }
    if let driver {
      let device = try attach(driver, settings, sockets)
      if isRelayed { close(sockets) }
      if !isReconfiguring { try lookForPartitions(device, relay) }
      try announce(device)
      relay.run()
    } else {
      try serve(settings, sockets, relay, announce)
    }
    // Without a relay the sockets are the connections', and are closed with them.
    withExtendedLifetime(connections) {}
  }

  private func open() throws -> NegotiatedConnection {
    do throws(NBDClientFault) {
      return try NegotiatedConnection.open(uri, options)
    } catch {
      throw ControlError("\(uri)", "\(error)")
    }
  }

  /// The socket that the kernel gets: the server's, or one whose other end is the relay's.
  private func lend(_ connection: NegotiatedConnection, _ relay: Relay) throws -> Int32 {
    if !isRelayed, let descriptor = connection.descriptor { return descriptor }
    precondition(isRelayed, "an encrypted connection was to be the kernel's")
    let pair = try ByteSocket.pair()
    relay.add(connection, ByteSocket(adopting: pair.near))
    return pair.far
  }

  /// Closes ends that the kernel has now: a relay sees the kernel's end only if nobody else has it.
  private func close(_ sockets: [Int32]) {
    for socket in sockets { _ = ByteSocket(adopting: socket) }
  }

  private func attach(
    _ driver: NetlinkDriver, _ settings: AttachSettings, _ sockets: [Int32]
  ) throws(ControlError) -> DeviceName {
    try about(wishes.device) { () throws(AttachFault) in
      guard isReconfiguring, let device = wishes.device else {
        return try driver.attach(settings, sockets: sockets)
      }
      try driver.reconfigure(device, settings, sockets: sockets)
      return device
    }
  }

  /// Has the kernel look for partitions, so that they are there when the device is announced. It
  /// reads, and these are the first bytes that the relay carries.
  private func lookForPartitions(_ device: DeviceName, _ relay: Relay) throws {
    guard isRelayed else { return device.lookForPartitions() }
    let end = try LookEnd()
    try OwnThread { [end] in
      device.lookForPartitions()
      end.bell.signal()
    }.detach()
    relay.run(until: end.bell.descriptor)
  }

  /// Attaches by ioctl: the kernel keeps one thread for as long as the device is attached.
  private func serve(
    _ settings: AttachSettings, _ sockets: [Int32], _ relay: Relay,
    _ announce: (DeviceName) throws -> Void
  ) throws {
    let name = try about(wishes.device) { () throws(AttachFault) in
      if let device = wishes.device { return device }
      return try IoctlDevice.free()
    }
    let device = try about(name) { () throws(AttachFault) in
      let device = try IoctlDevice(name)
      try device.prepare(settings, sockets: sockets)
      return device
    }
    if isRelayed { close(sockets) }
    let end = ServeEnd()
    let thread = try OwnThread { [device, end] in
      do throws(AttachFault) {
        try device.serve()
        end.result.withLock { $0 = .success(()) }
      } catch {
        end.result.withLock { $0 = .failure(error) }
      }
    }
    let isAttached = try about(name) { () throws(AttachFault) in
      try name.wait(attached: true) { end.result.withLock { $0 != nil } }
    }
    guard isAttached else {
      // A thread inside the kernel that does not come back ends with the process.
      thread.detach()
      let result = end.result.withLock { $0 }
      try about(name) { () throws(AttachFault) in try result?.get() }
      throw ControlError("\(name)", "the kernel has not attached the device")
    }
    try lookForPartitions(name, relay)
    try announce(name)
    relay.run()
    thread.join()
  }
}

/// How the kernel's thread has ended; nil while it has not.
private final class ServeEnd: Sendable {
  let result = Mutex<Result<Void, AttachFault>?>(nil)
}

/// Rings when the kernel has looked for partitions.
private final class LookEnd: Sendable {
  let bell: EventCounter

  init() throws { bell = try EventCounter(.polled) }
}

// SPDX-License-Identifier: Apache-2.0
//
// The kernel's nbd driver, asked over netlink: no process has to stay behind, lost connections can
// be replaced, devices can be made. Source: linux/nbd-netlink.h. This file talks to the kernel.

import Glibc
import LinuxIO

/// The nbd family of generic netlink.
public final class NetlinkDriver {
  /// Datagrams of one answer, its end included.
  private static let datagramsMax = 64
  /// Longest wait for the rest of an answer; the kernel has done the work before it starts.
  private static let answerMilliseconds: Int32 = 10_000

  private let socket: NetlinkSocket
  private let family: NetlinkFamily
  private var sequence: UInt32 = 1

  private init(_ socket: consuming NetlinkSocket, _ family: NetlinkFamily) {
    self.socket = socket
    self.family = family
  }

  /// Finds the driver; nil when it is there and has no netlink (before Linux 4.12, or where this
  /// process has none).
  public static func find() throws(AttachFault) -> NetlinkDriver? {
    let socket: NetlinkSocket
    do throws(SystemError) {
      socket = try NetlinkSocket()
    } catch {
      guard DeviceState.isDriverThere else { throw .noDriver }
      return nil
    }
    let question = NetlinkFamily.question(NBDCommand.familyName, sequence: 0)
    do throws(Refusal) {
      let answers = try Self.exchange(question, sequence: 0, socket)
      let family = try Self.understand { () throws(NetlinkFault) in try NetlinkFamily(answers) }
      return NetlinkDriver(socket, family)
    } catch {
      guard case .errno(ENOENT, _) = error else { throw error.fault }
      guard DeviceState.isDriverThere else { throw .noDriver }
      return nil
    }
  }

  /// Makes a device of connected sockets. The kernel keeps them; the caller closes its own.
  ///
  /// - Returns: the device, the kernel's choice when `settings` name none.
  public func attach(
    _ settings: AttachSettings, sockets: [Int32]
  ) throws(AttachFault) -> DeviceName {
    try check(settings)
    let message = NBDCommand.connect(
      settings, sockets: sockets, family, sequence: nextSequence())
    do throws(Refusal) {
      let answers = try exchange(message)
      return DeviceName(
        index: try Self.understand { () throws(NetlinkFault) in
          try NBDCommand.connectedIndex(answers, family)
        })
    } catch {
      guard case .errno(EBUSY, _) = error, let index = settings.index else { throw error.fault }
      let state = try DeviceState(DeviceName(index: index))
      guard let state, state.isAttached else {
        throw .busy("somebody has the device open; end that, or name no device")
      }
      throw .attached(processID: state.processID)
    }
  }

  /// Gives an attached device new sockets for its dead ones, and its new size if it grew.
  public func reconfigure(
    _ device: DeviceName, _ settings: AttachSettings, sockets: [Int32]
  ) throws(AttachFault) {
    try check(settings)
    guard let state = try DeviceState(device) else { throw .noDevice }
    guard state.isAttached else { throw .notAttached }
    guard state.identifier == settings.identifier else {
      throw .different(Self.difference(state.identifier, settings.identifier))
    }
    guard settings.byteCount >= state.byteCount else {
      throw .different(
        "the export has \(settings.byteCount) bytes, and the device \(state.byteCount): it is"
          + " another one, or it shrank")
    }
    let message = NBDCommand.reconfigure(
      device.index, settings, sockets: sockets, family, sequence: nextSequence())
    do throws(Refusal) {
      _ = try exchange(message)
    } catch {
      guard case .errno(EINVAL, nil) = error else { throw error.fault }
      throw .refused("the device cannot be given new connections; was it attached by ioctl?")
    }
  }

  /// Ends the connections of a device. What is in flight fails.
  public func detach(_ device: DeviceName) throws(AttachFault) {
    let message = NBDCommand.disconnect(device.index, family, sequence: nextSequence())
    do throws(Refusal) {
      _ = try exchange(message)
    } catch {
      throw error.fault
    }
  }

  /// Whether the driver calls the device in use: attached, or held open by somebody.
  public func isInUse(_ device: DeviceName) throws(AttachFault) -> Bool {
    let message = NBDCommand.status(device.index, family, sequence: nextSequence())
    do throws(Refusal) {
      let answers = try exchange(message)
      return try Self.understand { () throws(NetlinkFault) in
        try NBDCommand.isConnected(device.index, answers, family) ?? false
      }
    } catch {
      throw error.fault
    }
  }

  private func check(_ settings: AttachSettings) throws(AttachFault) {
    guard
      settings.identifier == nil
        || family.attributeMax >= UInt32(NBDCommand.Attribute.backendIdentifier)
    else { throw .unsupported("this kernel's nbd driver knows no --identifier (Linux 5.14 does)") }
    guard
      settings.deadConnectionSeconds == nil
        || family.attributeMax >= UInt32(NBDCommand.Attribute.deadConnectionTimeout)
    else {
      throw .unsupported("this kernel's nbd driver knows no --dead-connection-timeout")
    }
  }

  private static func difference(_ attached: String?, _ named: String?) -> String {
    switch (attached, named) {
    case (let attached?, let named?):
      "the device was attached with --identifier \(attached), not \(named)"
    case (let attached?, nil):
      "the device was attached with an identifier; say --identifier \(attached)"
    case (nil, let named?): "the device was attached without --identifier, not with \(named)"
    case (nil, nil): preconditionFailure("two identifiers that are not there differ")
    }
  }

  private func nextSequence() -> UInt32 {
    sequence += 1
    return sequence
  }

  private func exchange(_ message: NetlinkMessage) throws(Refusal) -> [NetlinkAnswer] {
    try Self.exchange(message, sequence: sequence, socket)
  }

  /// Sends a request and gathers what comes until its end.
  private static func exchange(
    _ message: NetlinkMessage, sequence: UInt32, _ socket: borrowing NetlinkSocket
  ) throws(Refusal) -> [NetlinkAnswer] {
    try call { () throws(SystemError) in try socket.send(message.bytes) }
    var answers: [NetlinkAnswer] = []
    for _ in 0..<datagramsMax {
      let datagram = try call { () throws(SystemError) in
        try socket.receive(milliseconds: answerMilliseconds)
      }
      for answer in try understand({ () throws(NetlinkFault) in
        try NetlinkAnswer.all(in: datagram)
      }) {
        switch answer {
        case .message(sequence, _, _, _): answers.append(answer)
        case .end(sequence, 0, _): return answers
        case .end(sequence, let number, let text): throw .errno(number, text)
        // Of an earlier request, which nobody waits for any more.
        case .message, .end: continue
        }
      }
    }
    throw .fault(.malformed("more than \(datagramsMax) datagrams"))
  }

  /// Why an exchange came to nothing.
  private enum Refusal: Error {
    case errno(Int32, String?)
    case fault(AttachFault)

    var fault: AttachFault {
      switch self {
      case .errno(EPERM, _): .notAllowed
      case .errno(ENODEV, _): .noDevice
      case .errno(let number, let text?): .refused("\(text) (\(SystemError.text(of: number)))")
      case .errno(let number, nil):
        .refused("\(SystemError.text(of: number)); its log (dmesg) may say why")
      case .fault(let fault): fault
      }
    }
  }

  private static func understand<Result>(
    _ body: () throws(NetlinkFault) -> Result
  ) throws(Refusal) -> Result {
    do throws(NetlinkFault) {
      return try body()
    } catch {
      throw .fault(.malformed("\(error)"))
    }
  }

  private static func call<Result>(
    _ body: () throws(SystemError) -> Result
  ) throws(Refusal) -> Result {
    do throws(SystemError) {
      return try body()
    } catch {
      throw .fault(.system(error))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The kernel's nbd driver, asked by ioctl: the old way, in which a process stays behind for as long
// as the device is attached. Source: linux/nbd.h, nbd(4) of the driver's users. This file talks to
// the kernel.

import Glibc
import LinuxIO

/// A device that is being attached, or was, by ioctl. Any thread may use it.
public final class IoctlDevice: Sendable {
  /// Requests of linux/nbd.h; the argument of each is a number.
  private enum Request {
    static let setSocket: UInt = 0xab00
    static let setBlockSize: UInt = 0xab01
    static let doIt: UInt = 0xab03
    static let clearSocket: UInt = 0xab04
    static let clearQueue: UInt = 0xab05
    static let setSizeBlocks: UInt = 0xab07
    static let disconnect: UInt = 0xab08
    static let setTimeout: UInt = 0xab09
    static let setFlags: UInt = 0xab0a
  }

  /// Devices that are looked at for a free one.
  private static let devicesMax: UInt32 = 1_024

  public let device: DeviceName
  private let file: DeviceFile

  /// Opens a device, attached or not.
  ///
  /// - Parameter exclusively: refuses a device that is in use, with `busy`.
  public init(_ device: DeviceName, exclusively: Bool = false) throws(AttachFault) {
    self.device = device
    do throws(SystemError) {
      file = try DeviceFile(opening: device.description, exclusively: exclusively)
    } catch {
      switch error.errno {
      case EBUSY:
        throw .busy("the device is in use: mounted, swapped to, or part of another one")
      case ENOENT, ENXIO, ENODEV: throw DeviceState.isDriverThere ? .noDevice : .noDriver
      case EACCES, EPERM: throw .notAllowed
      default: throw .system(error)
      }
    }
  }

  /// Throws `noDriver` where there is none.
  public static func requireDriver() throws(AttachFault) {
    guard DeviceState.isDriverThere else { throw .noDriver }
  }

  /// Finds a device that nobody has attached.
  public static func free() throws(AttachFault) -> DeviceName {
    for index in 0..<devicesMax {
      let device = DeviceName(index: index)
      guard let state = try DeviceState(device) else {
        throw index == 0 ? .noDriver : .noFreeDevice
      }
      if !state.isAttached { return device }
    }
    throw .noFreeDevice
  }

  /// Tells the kernel everything that it needs before `serve`.
  public func prepare(_ settings: AttachSettings, sockets: [Int32]) throws(AttachFault) {
    guard settings.identifier == nil, settings.deadConnectionSeconds == nil else {
      throw .unsupported("--identifier and --dead-connection-timeout need the driver's netlink")
    }
    if let state = try DeviceState(device), state.isAttached {
      throw .attached(processID: state.processID)
    }
    let blockByteCount = UInt64(settings.blockByteCount)
    try control(Request.setBlockSize, UInt(blockByteCount), "NBD_SET_BLKSIZE")
    try control(
      Request.setSizeBlocks, UInt(settings.byteCount / blockByteCount), "NBD_SET_SIZE_BLOCKS")
    try control(Request.setFlags, UInt(settings.flags.rawValue), "NBD_SET_FLAGS")
    if let seconds = settings.timeoutSeconds {
      try control(Request.setTimeout, UInt(seconds), "NBD_SET_TIMEOUT")
    }
    for socket in sockets { try control(Request.setSocket, UInt(socket), "NBD_SET_SOCK") }
  }

  /// Attaches the device and returns when it is detached. Meanwhile the thread is the kernel's.
  ///
  /// - Throws: when the connections were lost instead.
  public func serve() throws(AttachFault) {
    defer {
      // Nothing is left to tell the kernel but to forget the sockets; a refusal changes nothing.
      do throws(AttachFault) {
        try control(Request.clearQueue, 0, "NBD_CLEAR_QUE")
        try control(Request.clearSocket, 0, "NBD_CLEAR_SOCK")
      } catch {}
    }
    try control(Request.doIt, 0, "NBD_DO_IT")
  }

  /// Ends the connections of the device, however it was attached. What is in flight fails.
  public func detach() throws(AttachFault) {
    try control(Request.disconnect, 0, "NBD_DISCONNECT")
    try control(Request.clearSocket, 0, "NBD_CLEAR_SOCK")
  }

  /// Brings what was written to the device to the server, and waits for its answer.
  public func synchronize() throws(AttachFault) {
    do throws(SystemError) {
      try file.synchronize()
    } catch {
      throw .system(error)
    }
  }

  private func control(_ request: UInt, _ value: UInt, _ name: String) throws(AttachFault) {
    do throws(SystemError) {
      try file.control(request, value, name)
    } catch {
      switch error.errno {
      case EPERM, EACCES: throw .notAllowed
      case EBUSY: throw .attached(processID: nil)
      default: throw .system(error)
      }
    }
  }
}

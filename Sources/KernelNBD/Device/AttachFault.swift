// SPDX-License-Identifier: Apache-2.0
//
// Why a disk cannot be attached or detached, said so that a person can act on it.
// This file performs no I/O.

import LinuxIO

/// A fault of the kernel's side; the caller adds the device or the URI.
public enum AttachFault: Error, Hashable, Sendable {
  case badDevice(String)
  /// What the export is cannot be made a device of the kernel.
  case unfit(String)
  /// The kernel has no nbd driver now.
  case noDriver
  /// The driver has no netlink, or an old one.
  case unsupported(String)
  case noDevice
  case notAllowed
  /// The device is attached already; by this process, where the kernel tells.
  case attached(processID: Int32?)
  /// The device is not attached.
  case notAttached
  /// Somebody uses the device.
  case busy(String)
  /// The device belongs to another export than the one that was named.
  case different(String)
  case noFreeDevice
  case system(SystemError)
  /// What the kernel refused, and how it said so.
  case refused(String)
  /// The kernel's answer cannot be.
  case malformed(String)
}

extension AttachFault: CustomStringConvertible {
  public var description: String {
    switch self {
    case .badDevice(let what), .unfit(let what), .unsupported(let what), .busy(let what),
      .different(let what):
      what
    case .noDriver: "the kernel has no nbd driver; load it with 'modprobe nbd'"
    case .noDevice:
      "there is no such device; load the driver with more of them ('modprobe nbd nbds_max=32'), or"
        + " let the kernel choose one"
    case .notAllowed: "only root may do this (it needs CAP_SYS_ADMIN)"
    case .attached(let processID?):
      "the device is attached already, by process \(processID); detach it first, or name no device"
    case .attached(nil):
      "the device is attached already; detach it first, or name no device"
    case .notAttached: "the device is not attached"
    case .noFreeDevice:
      "no device is free; detach one, or load the driver with more of them ('modprobe nbd"
        + " nbds_max=32')"
    case .system(let error): error.description
    case .refused(let what): "the kernel refuses: \(what)"
    case .malformed(let what): "the kernel's answer cannot be understood: \(what)"
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Waiting for a device to become what it was made to be, and looking at it first. This file reads
// sysfs and opens devices.

import LinuxIO

extension DeviceName {
  private static let waitMilliseconds: UInt32 = 20

  /// Whether the device is attached, as sysfs shows it, or `driver` says where there is no sysfs.
  ///
  /// - Throws: `noDriver` and `noDevice` when there is no such device.
  public func isAttached(_ driver: NetlinkDriver? = nil) throws(AttachFault) -> Bool {
    if let state = try DeviceState(self) { return state.isAttached }
    if let driver, !DeviceState.isDriverThere { return try driver.isInUse(self) }
    throw DeviceState.isDriverThere ? .noDevice : .noDriver
  }

  /// Waits until the device is attached, or is no longer; false when that takes more than ten
  /// seconds, or when `isOver` says that it will not be.
  public func wait(
    attached: Bool, _ driver: NetlinkDriver? = nil, unless isOver: () -> Bool = { false }
  ) throws(AttachFault) -> Bool {
    let deadline = MonotonicClock.nanoseconds + 10_000_000_000
    while try isAttached(driver) != attached {
      guard !isOver(), MonotonicClock.nanoseconds < deadline else { return false }
      MonotonicClock.sleep(milliseconds: Self.waitMilliseconds)
    }
    return true
  }

  /// Makes the kernel look for partitions, which it does when a device is first opened after it was
  /// attached or detached.
  public func lookForPartitions() {
    // A server that dies now is seen by the next user; where there are no device files, there are
    // no partitions' either.
    do throws(AttachFault) { _ = try IoctlDevice(self) } catch {}
  }
}

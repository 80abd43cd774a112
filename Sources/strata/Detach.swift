// SPDX-License-Identifier: Apache-2.0
//
// `strata detach`: the end of a disk that `strata attach`, or nbd-client, has made.

import ArgumentParser
import Control
import KernelNBD

struct Detach: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Take a disk away that was attached.",
    discussion: """
      What was written is brought to the server first. A disk that is in use (mounted, swapped to, \
      part of another one) is not detached, and neither is one whose server does not take its \
      writes, unless with --force.
      """)

  @Flag(help: "Detach a disk that is in use or whose server is gone; what was not written is lost.")
  var force = false

  @Flag(help: "Use the driver's ioctls and not its netlink.")
  var ioctl = false

  @Argument(help: "The device, such as /dev/nbd0.")
  var device: String

  func run() throws {
    let device = try parseDevice(device)
    try about(device) { () throws(AttachFault) in
      let driver = ioctl ? nil : try NetlinkDriver.find()
      guard try device.isAttached(driver) else { throw .notAttached }
      try end(device, driver)
      guard try device.wait(attached: false, driver) else {
        throw .busy("the driver was asked to detach the device, and has not yet")
      }
      // Its partitions go when somebody looks.
      device.lookForPartitions()
    }
  }

  private func end(_ device: DeviceName, _ driver: NetlinkDriver?) throws(AttachFault) {
    if force, let driver { return try driver.detach(device) }
    // Open until it is detached, so that nobody mounts it meanwhile; and closed then, because the
    // driver waits for the last one who has it open.
    let held = try IoctlDevice(device, exclusively: !force)
    defer { withExtendedLifetime(held) {} }
    if !force { try write(held) }
    if let driver {
      try driver.detach(device)
    } else {
      try held.detach()
    }
  }

  private func write(_ held: IoctlDevice) throws(AttachFault) {
    do throws(AttachFault) {
      try held.synchronize()
    } catch {
      throw .refused("the last writes did not reach the server (\(error)); --force gives them up")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What sysfs tells about an nbd device. Source: the kernel's Documentation/ABI (sysfs-block,
// sysfs-block-nbd: "pid", "backend"). This file reads files.

import Glibc
import LinuxIO

/// A device as it is now.
struct DeviceState: Hashable {
  /// Of the process that attached it; the file is there while the device is attached.
  let processID: Int32?
  let isAttached: Bool
  let byteCount: UInt64
  /// What `--identifier` said when it was attached.
  let identifier: String?

  /// Whether sysfs shows any device of the driver.
  static var isDriverThere: Bool {
    Environment.isThere("/sys/block/nbd0") || Environment.isThere("/sys/module/nbd")
  }

  /// nil when there is no such device.
  init?(_ device: DeviceName) throws(AttachFault) {
    let folder = "/sys/block/nbd\(device.index)"
    guard Environment.isThere(folder) else { return nil }
    let process = try Self.line("\(folder)/pid")
    isAttached = process != nil
    processID = process.flatMap { Int32($0) }
    let sectors = try Self.line("\(folder)/size").flatMap { UInt64($0) } ?? 0
    let (byteCount, isTooLarge) = sectors.multipliedReportingOverflow(
      by: AttachSettings.sectorByteCount)
    guard !isTooLarge else { throw .malformed("a size of \(sectors) sectors") }
    self.byteCount = byteCount
    // The file stays, empty, when the device is attached again without one.
    let backend = try Self.line("\(folder)/backend")
    identifier = backend == "" ? nil : backend
  }

  /// The text of a file without its line feed; nil when there is no such file.
  private static func line(_ path: String) throws(AttachFault) -> String? {
    guard Environment.isThere(path) else { return nil }
    do throws(SystemError) {
      var bytes = try SmallFile.read(path, byteCountMax: 8_192)
      if bytes.last == 0x0a { bytes.removeLast() }
      return String(decoding: bytes, as: UTF8.self)
    } catch {
      // The device was detached between the two calls.
      if error.errno == ENOENT || error.errno == ENODEV { return nil }
      throw .system(error)
    }
  }
}

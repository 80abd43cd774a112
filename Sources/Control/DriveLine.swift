// SPDX-License-Identifier: Apache-2.0
//
// The option with which QEMU uses an export. This file performs no I/O.

import LinuxIO

/// Makes `-drive` options.
public enum DriveLine {
  public static func text(unixPath path: String) -> String { text(address: "unix:\(path)") }

  public static func text(tcp address: SocketAddress) -> String { text(address: "\(address)") }

  /// QEMU's option parser takes a doubled comma for one that belongs to the value.
  private static func text(address: String) -> String {
    let escaped = address.split(separator: ",", omittingEmptySubsequences: false)
      .joined(separator: ",,")
    return "-drive file=nbd:\(escaped),format=raw,if=virtio"
  }
}

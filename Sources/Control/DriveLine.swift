// SPDX-License-Identifier: Apache-2.0
//
// The option with which QEMU uses an export. This file performs no I/O.

import LinuxIO

/// Makes `-drive` options.
public enum DriveLine {
  /// - Parameter export: nil for the export that answers to no name.
  public static func text(
    unixPath path: String, export: String? = nil, needsTLS: Bool = false
  ) -> String {
    guard needsTLS else { return text(address: "unix:\(path)", export) }
    return secureText(export, "type=unix", "path=\(escaped(path))")
  }

  public static func text(
    tcp address: SocketAddress, export: String? = nil, needsTLS: Bool = false
  ) -> String {
    guard needsTLS else { return text(address: "\(address)", export) }
    // 127.0.0.1:10809 or [::1]:10809
    let host = "\(address)".dropLast("\(address.port)".count + 1).filter { !"[]".contains($0) }
    return secureText(export, "type=inet", "host=\(host)", "port=\(address.port)")
  }

  /// The credentials are an object of the user's, who says `-object tls-creds-…,id=tls0,…` before.
  private static func secureText(_ export: String?, _ server: String...) -> String {
    var words = server.map { "file.server.\($0)," }.joined()
    if let export { words += "file.export=\(escaped(export))," }
    return "-drive file.driver=nbd,\(words)file.tls-creds=tls0,format=raw,if=virtio"
  }

  private static func text(address: String, _ export: String?) -> String {
    let name = export.map { ":exportname=\($0)" } ?? ""
    return "-drive file=nbd:\(escaped(address + name)),format=raw,if=virtio"
  }

  /// QEMU's option parser takes a doubled comma for one that belongs to the value.
  private static func escaped(_ value: String) -> String {
    value.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,")
  }
}

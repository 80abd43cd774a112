// SPDX-License-Identifier: Apache-2.0
//
// Reads certificates and keys, before privileges are given up, and makes the plan for TLS of them.
// The layout of the folder is QEMU's. Source: docs/system/tls.rst.

import DataPlane
import Glibc
import LinuxIO
import TLS

/// Makes a `TLSPlan`.
enum TLSLoader {
  /// Bytes of one file.
  private static let fileByteCountMax = 4 << 20

  /// nil when TLS is off. `config` must be valid.
  static func plan(_ config: TLSConfig) throws(ControlError) -> TLSPlan? {
    guard config.policy != .off else { return nil }
    let access = PeerAccess(
      allowedNames: config.allowedNames, allowedIdentities: config.allowedIdentities)
    return TLSPlan(policy: config.policy, credentials: try credentials(config)) {
      access.refusal(of: $0)
    }
  }

  private static func credentials(_ config: TLSConfig) throws(ControlError) -> TLSCredentials {
    if let path = config.keysPath { return try keys(path, config) }
    guard let folder = config.certificatesPath else {
      preconditionFailure("TLS is on without credentials")
    }
    return try certificates(folder, config)
  }

  private static func keys(
    _ path: String, _ config: TLSConfig
  ) throws(ControlError) -> TLSCredentials {
    let text = try read(path)
    do throws(TLSFault) {
      return try TLSCredentials(
        keys: try PSKTable(parsing: text), role: .server, priority: config.priority)
    } catch {
      throw ControlError(path, "\(error)", wayOut: "write it with psktool(1)")
    }
  }

  private static func certificates(
    _ folder: String, _ config: TLSConfig
  ) throws(ControlError) -> TLSCredentials {
    let files = TLSCredentials.CertificateFiles(
      authorities: try read("\(folder)/ca-cert.pem"),
      revocations: try readIfThere("\(folder)/ca-crl.pem"),
      certificate: try read("\(folder)/server-cert.pem"),
      key: try read("\(folder)/server-key.pem"))
    do throws(TLSFault) {
      return try TLSCredentials(
        files, role: .server, verifiesPeer: config.verifiesPeer, priority: config.priority)
    } catch {
      throw ControlError(folder, "\(error)")
    }
  }

  private static func read(_ path: String) throws(ControlError) -> [UInt8] {
    do throws(SystemError) {
      return try SmallFile.read(path, byteCountMax: fileByteCountMax)
    } catch {
      throw ControlError(path, error)
    }
  }

  private static func readIfThere(_ path: String) throws(ControlError) -> [UInt8]? {
    do throws(SystemError) {
      return try SmallFile.read(path, byteCountMax: fileByteCountMax)
    } catch {
      if error.errno == ENOENT { return nil }
      throw ControlError(path, error)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// From a client's wishes about TLS to what its sessions are made of. This file reads certificates
// and keys. Source: uri.md of the NBD project; docs/system/tls.rst of QEMU; psktool(1).

import LinuxIO
import NBDProtocol
import TLS

extension ClientTLS {
  /// Bytes of one file.
  private static var fileByteCountMax: Int { 4 << 20 }

  /// Reads what TLS with the server of `uri` needs; nil when TLS is off. Nothing is kept between
  /// two calls, so that a new connection uses new certificates and new lists of revoked ones.
  ///
  /// - Throws: `unsupported`, naming the file or the parameter that is wrong.
  public func plan(for uri: NBDURI) throws(NBDClientFault) -> TLSClientPlan? {
    guard try use(for: uri) != .off else { return nil }
    let plan: TLSClientPlan
    switch try kind(for: uri) {
    case .psk: plan = try keyPlan(for: uri)
    case .x509: plan = try certificatePlan(for: uri)
    case .anon: throw .unsupported("TLS without any proof (tls-type=anon) is not supported")
    }
    do throws(TLSFault) {
      // A plan that makes no session is told before anybody is called.
      _ = try plan.makeSession()
    } catch {
      throw .unsupported("TLS: \(error)")
    }
    return plan
  }

  private func kind(for uri: NBDURI) throws(NBDClientFault) -> NBDURI.TLSWishes.Kind {
    let folder = certificatesFolder ?? (keyFile == nil ? uri.tls.certificatesFolder : nil)
    let keys = keyFile ?? (certificatesFolder == nil ? uri.tls.keyFile : nil)
    if !hasCredentials, let kind = uri.tls.kind {
      guard kind != .psk || keys != nil else {
        throw .unsupported("tls-type=psk needs a file with keys: tls-psk-file=FILE")
      }
      return kind
    }
    guard folder == nil || keys == nil else {
      throw .unsupported("a client has certificates or shared keys, not both")
    }
    return keys == nil ? .x509 : .psk
  }

  private func certificatePlan(for uri: NBDURI) throws(NBDClientFault) -> TLSClientPlan {
    let verifiesPeer = verifiesPeer ?? uri.tls.verifiesPeer ?? true
    let host = hostname ?? uri.tls.hostname ?? ClientTLS.host(of: uri)
    guard host != nil || !verifiesPeer else {
      throw .unsupported(
        "the server's certificate is checked for a name, and this address has none: say"
          + " tls-hostname=NAME")
    }
    var files = TLSCredentials.CertificateFiles(authorities: nil)
    if let folder = certificatesFolder ?? uri.tls.certificatesFolder {
      files.authorities =
        verifiesPeer
        ? try read("\(folder)/ca-cert.pem") : try readIfThere("\(folder)/ca-cert.pem")
      files.revocations = try readIfThere("\(folder)/ca-crl.pem")
      files.certificate = try readIfThere("\(folder)/client-cert.pem")
      files.key = try readIfThere("\(folder)/client-key.pem")
      guard (files.certificate == nil) == (files.key == nil) else {
        throw .unsupported("\(folder): of client-cert.pem and client-key.pem one is missing")
      }
    }
    return TLSClientPlan(
      .certificates(files, verifiesPeer: verifiesPeer), host: host, priority: priority)
  }

  private func keyPlan(for uri: NBDURI) throws(NBDClientFault) -> TLSClientPlan {
    guard let path = keyFile ?? uri.tls.keyFile else {
      preconditionFailure("shared keys were chosen without a file")
    }
    let text = try read(path)
    let table: PSKTable
    do throws(TLSFault) {
      table = try PSKTable(parsing: text)
    } catch {
      throw .unsupported("\(path): \(error)")
    }
    let entry = try entry(of: table, named: identity ?? uri.userName, path)
    return TLSClientPlan(
      .keys(PSKTable(identity: entry.identity, key: entry.key)), host: nil, priority: priority)
  }

  /// - Spec: uri.md, "NBD URI authority": without a user a local credential SHOULD be used.
  private func entry(
    of table: PSKTable, named name: String?, _ path: String
  ) throws(NBDClientFault) -> PSKTable.Entry {
    func find(_ name: String) -> PSKTable.Entry? {
      table.entries.first { $0.identity.elementsEqual(name.utf8) }
    }
    if let name {
      guard let entry = find(name) else {
        throw .unsupported("\(path): there is no key of \(ExportName.printable(name))")
      }
      return entry
    }
    if let user = Environment.variable("USER"), let entry = find(user) { return entry }
    guard table.entries.count == 1 else {
      throw .unsupported("\(path): there are several identities: say which, as nbds://NAME@HOST/")
    }
    return table.entries[0]
  }

  private static func host(of uri: NBDURI) -> String? {
    switch uri.endpoint {
    case .tcp(let host, _): host ?? "localhost"
    case .unix, .vsock: nil
    }
  }

  private func read(_ path: String) throws(NBDClientFault) -> [UInt8] {
    do throws(SystemError) {
      return try SmallFile.read(path, byteCountMax: Self.fileByteCountMax)
    } catch {
      throw .unsupported("\(path): \(error)")
    }
  }

  private func readIfThere(_ path: String) throws(NBDClientFault) -> [UInt8]? {
    do throws(SystemError) {
      return try SmallFile.read(path, byteCountMax: Self.fileByteCountMax)
    } catch {
      if error.isMissing { return nil }
      throw .unsupported("\(path): \(error)")
    }
  }
}

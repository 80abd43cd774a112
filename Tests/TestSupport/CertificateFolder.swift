// SPDX-License-Identifier: Apache-2.0
//
// An authority, a server and clients with certificates, in the layout that QEMU and libnbd use.
// This file runs certtool(1) and psktool(1) in a temporary folder.

import Foundation

/// Certificates for one test. Each end has a folder of its own.
public final class CertificateFolder: Sendable {
  private let folder: TemporaryFolder

  /// What a certificate is to say, besides its name.
  public enum Validity: Sendable { case now, expired }

  /// What stands in a server's certificate beside its common name, "localhost".
  public static let localhostNames = ["dns_name = localhost", "ip_address = 127.0.0.1"]

  /// Makes an authority and a server.
  public init(
    serverValidity: Validity = .now, serverNames: [String] = localhostNames,
    serverPurpose: String = "tls_www_server"
  ) throws {
    folder = try TemporaryFolder()
    try makeAuthority("ca")
    try FileManager.default.createDirectory(
      atPath: serverPath, withIntermediateDirectories: false)
    try copy("ca-cert.pem", "server/ca-cert.pem")
    try makeCertificate(
      "server/server", ["cn = localhost", serverPurpose] + serverNames, authority: "ca",
      serverValidity)
  }

  /// The folder of the server.
  public var serverPath: String { folder.path("server") }

  /// A folder with the authority's certificate and one for a client.
  public func client(
    _ name: String, organization: String = "Strata", authority: String = "ca",
    validity: Validity = .now, purpose: String = "tls_www_client"
  ) throws -> String {
    let path = try emptyClient(name)
    try makeCertificate(
      "\(name)/client", ["cn = \(name)", "organization = \(organization)", purpose],
      authority: authority, validity)
    return path
  }

  /// A folder with the authority's certificate alone.
  public func emptyClient(_ name: String, authority: String = "ca") throws -> String {
    let path = folder.path(name)
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    try copy("\(authority)-cert.pem", "\(name)/ca-cert.pem")
    return path
  }

  /// Another authority, that this server does not know.
  public func makeAuthority(_ name: String) throws {
    try makeKey("\(name)-key.pem")
    let template = try write(
      "\(name).tmpl",
      "cn = \"authority \(name)\"\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 30\n")
    try certtool(
      "--generate-self-signed", "--load-privkey", folder.path("\(name)-key.pem"), "--template",
      template, "--outfile", folder.path("\(name)-cert.pem"))
  }

  /// Puts the certificates of `clients` on the server's list of revoked ones.
  public func revoke(_ clients: String...) throws {
    let all = try clients.map {
      try String(contentsOfFile: folder.path("\($0)/client-cert.pem"), encoding: .utf8)
    }
    let revoked = try write("revoked.pem", all.joined())
    let template = try write("crl.tmpl", "crl_next_update = 30\ncrl_number = 1\n")
    try certtool(
      "--generate-crl", "--load-ca-privkey", folder.path("ca-key.pem"), "--load-ca-certificate",
      folder.path("ca-cert.pem"), "--load-certificate", revoked, "--template", template,
      "--outfile", "\(serverPath)/ca-crl.pem")
  }

  /// Gives the server a certificate that it has signed itself.
  public func signServerByItself() throws {
    let template = try write(
      "self.tmpl",
      (["cn = localhost", "tls_www_server", "expiration_days = 30"] + Self.localhostNames)
        .joined(separator: "\n") + "\n")
    try certtool(
      "--generate-self-signed", "--load-privkey", folder.path("server/server-key.pem"),
      "--template", template, "--outfile", folder.path("server/server-cert.pem"))
  }

  /// Puts the server's certificate on the list of revoked ones of the client in `folderPath`.
  public func revokeServer(for folderPath: String) throws {
    let template = try write("crl.tmpl", "crl_next_update = 30\ncrl_number = 1\n")
    try certtool(
      "--generate-crl", "--load-ca-privkey", folder.path("ca-key.pem"), "--load-ca-certificate",
      folder.path("ca-cert.pem"), "--load-certificate", folder.path("server/server-cert.pem"),
      "--template", template, "--outfile", "\(folderPath)/ca-crl.pem")
  }

  private func makeCertificate(
    _ path: String, _ lines: [String], authority: String, _ validity: Validity
  ) throws {
    try makeKey("\(path)-key.pem")
    let dates =
      switch validity {
      case .now: ["expiration_days = 30"]
      case .expired:
        [
          "activation_date = \"2020-01-01 00:00:00\"", "expiration_date = \"2020-02-01 00:00:00\"",
        ]
      }
    let template = try write(
      "\(path).tmpl", (lines + ["signing_key"] + dates).joined(separator: "\n") + "\n")
    try certtool(
      "--generate-certificate", "--load-ca-privkey", folder.path("\(authority)-key.pem"),
      "--load-ca-certificate", folder.path("\(authority)-cert.pem"), "--load-privkey",
      folder.path("\(path)-key.pem"), "--template", template, "--outfile",
      folder.path("\(path)-cert.pem"))
  }

  private func makeKey(_ path: String) throws {
    try certtool(
      "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1", "--outfile",
      folder.path(path))
  }

  private func certtool(_ arguments: String...) throws { try runTool("certtool", arguments) }

  private func copy(_ source: String, _ target: String) throws {
    try FileManager.default.copyItem(atPath: folder.path(source), toPath: folder.path(target))
  }

  private func write(_ name: String, _ text: String) throws -> String {
    let path = folder.path(name)
    try text.write(toFile: path, atomically: false, encoding: .utf8)
    return path
  }
}

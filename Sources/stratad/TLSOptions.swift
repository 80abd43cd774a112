// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad about TLS. tools/man/stratad.8 says the same in prose.

import ArgumentParser
import Control

struct TLSOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Use of TLS: required, offered or off. (default: required with credentials, else off)",
      valueName: "mode"))
  var tls: TLSConfig.Mode?

  @Option(
    help: ArgumentHelp(
      "Folder with ca-cert.pem, server-cert.pem, server-key.pem and perhaps ca-crl.pem.",
      valueName: "folder"))
  var tlsCertificates: String?

  @Flag(help: "Let only clients in whose certificates ca-cert.pem has signed.")
  var tlsVerifyPeer = false

  @Option(help: ArgumentHelp("File with the keys shared with clients.", valueName: "path"))
  var tlsPsk: String?

  @Option(
    help: ArgumentHelp("Versions and ciphers, in the words of GnuTLS.", valueName: "priority"))
  var tlsPriority: String?

  @Option(
    name: .customLong("tls-allow-dn"),
    help: ArgumentHelp(
      "Let only clients in with such a distinguished name (*, ?); may be repeated.",
      valueName: "pattern"))
  var tlsAllowDN: [String] = []

  @Option(
    name: .customLong("tls-allow-psk-identity"),
    help: ArgumentHelp(
      "Let only clients in with this identity; may be repeated.", valueName: "name"))
  var tlsAllowPSKIdentity: [String] = []

  var config: TLSConfig {
    var config = TLSConfig()
    config.mode = tls
    config.certificatesPath = tlsCertificates
    config.verifiesPeer = tlsVerifyPeer
    config.keysPath = tlsPsk
    config.priority = tlsPriority
    config.allowedNames = tlsAllowDN
    config.allowedIdentities = tlsAllowPSKIdentity
    return config
  }
}

extension TLSConfig.Mode: ExpressibleByArgument {}

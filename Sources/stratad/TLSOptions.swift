// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad by which it proves itself. tools/man/stratad.8 says the same in prose.

import ArgumentParser
import Control

struct TLSOptions: ParsableArguments {
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

  var config: TLSConfig {
    var config = TLSConfig()
    config.certificatesPath = tlsCertificates
    config.verifiesPeer = tlsVerifyPeer
    config.keysPath = tlsPsk
    config.priority = tlsPriority
    return config
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The options of clients about TLS. tools/man/strata.1 says the same in prose.

import ArgumentParser
import NBDClient

struct ClientTLSOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Use of TLS: required, offered or off. (default: required for nbds: and with credentials)",
      valueName: "mode"))
  var tls: ClientTLS.Use?

  @Option(
    help: ArgumentHelp(
      "Folder with ca-cert.pem and perhaps ca-crl.pem, client-cert.pem, client-key.pem.",
      valueName: "folder"))
  var tlsCertificates: String?

  @Option(help: ArgumentHelp("File with the key shared with the server.", valueName: "path"))
  var tlsPsk: String?

  @Option(help: ArgumentHelp("Whose key of that file; else the URI's user.", valueName: "name"))
  var tlsIdentity: String?

  @Option(
    help: ArgumentHelp(
      "Name or IP address in the server's certificate; else the URI's host.", valueName: "name"))
  var tlsHostname: String?

  @Flag(help: "Take any certificate of the server: whoever answers may be somebody else.")
  var tlsNoVerifyPeer = false

  @Option(
    help: ArgumentHelp("Versions and ciphers, in the words of GnuTLS.", valueName: "priority"))
  var tlsPriority: String?

  var wishes: ClientTLS {
    var wishes = ClientTLS()
    wishes.use = tls
    wishes.certificatesFolder = tlsCertificates
    wishes.keyFile = tlsPsk
    wishes.identity = tlsIdentity
    wishes.hostname = tlsHostname
    wishes.verifiesPeer = tlsNoVerifyPeer ? false : nil
    wishes.priority = tlsPriority
    return wishes
  }
}

extension ClientTLS.Use: ExpressibleByArgument {}

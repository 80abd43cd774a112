// SPDX-License-Identifier: Apache-2.0
//
// Which options of TLS go together, and who may use an export.

import BlockTypes
import Control
import LinuxIO
import TLS
import Testing

@Suite struct `Options of TLS` {
  private func refusal(_ change: (inout TLSConfig) -> Void) -> String? {
    var tls = TLSConfig()
    change(&tls)
    var config = ExportConfig(
      imagePath: "disk", format: .raw, isReadOnly: false, engine: .aio, exportName: nil,
      description: "", minimumBlockByteCount: 1, metadataCacheByteCount: 32 << 20,
      pollMicroseconds: 0, handshakeSecondsMax: 10, connectionsMax: 100, socketPath: "s",
      socketMode: 0o600, socketOwner: nil, controlPath: nil, tcpEndpoint: nil,
      allowsTCPWithoutTLS: false, user: nil, readyDescriptor: nil, pidFilePath: nil,
      runsInBackground: false, printsDrive: false)
    config.tls = tls
    do throws(ControlError) {
      try PlanCompiler.validate(config)
      return nil
    } catch {
      return error.subject
    }
  }

  @Test func `are not needed`() { #expect(refusal { _ in } == nil) }

  @Test func `mean that TLS is required where there are credentials and nothing else is said`() {
    var config = TLSConfig()
    #expect(config.policy == .off)
    config.keysPath = "keys.psk"
    #expect(config.policy == .required)
    config.mode = .offered
    #expect(config.policy == .offered)
    config.mode = .off
    #expect(config.policy == .off)
  }

  @Test func `need credentials to be of use`() {
    #expect(refusal { $0.mode = .required } == "--tls")
    #expect(refusal { $0.mode = .offered } == "--tls")
    #expect(refusal { $0.mode = .off } == nil)
    #expect(refusal { $0.priority = "NORMAL" } == "--tls-priority")
    #expect(refusal { $0.verifiesPeer = true } == "--tls-verify-peer")
    #expect(refusal { $0.allowedIdentities = ["alice"] } == "--tls-allow-psk-identity")
  }

  @Test func `are for certificates or for shared keys`() {
    #expect(
      refusal {
        $0.certificatesPath = "/etc/pki"
        $0.keysPath = "keys.psk"
      } == "--tls-psk")
  }

  @Test func `allow names only where they are checked`() {
    #expect(
      refusal {
        $0.certificatesPath = "/etc/pki"
        $0.allowedNames = ["CN=*"]
      } == "--tls-allow-dn")
    #expect(
      refusal {
        $0.certificatesPath = "/etc/pki"
        $0.verifiesPeer = true
        $0.allowedNames = ["CN=*"]
      } == nil)
  }
}

@Suite struct `Access of a client that TLS has proved` {
  @Test func `is granted to everybody that has a key or a good certificate, without lists`() {
    let access = PeerAccess()
    #expect(access.refusal(of: .anonymous) == nil)
    #expect(access.refusal(of: .preSharedKey(identity: "alice")) == nil)
    #expect(access.refusal(of: .certificate(distinguishedName: "CN=alice")) == nil)
  }

  @Test func `is never granted with a certificate that is not good`() {
    let access = PeerAccess(allowedNames: ["*"], allowedIdentities: ["alice"])
    #expect(access.refusal(of: .refusedCertificate(reason: "expired")) == "expired")
    #expect(PeerAccess().refusal(of: .refusedCertificate(reason: "expired")) == "expired")
  }

  @Test func `is by the whole name and the exact identity`() {
    let access = PeerAccess(
      allowedNames: ["CN=alice,O=Strata", "CN=vm-*,O=Strata"], allowedIdentities: ["alice"])
    #expect(access.refusal(of: .certificate(distinguishedName: "CN=alice,O=Strata")) == nil)
    #expect(access.refusal(of: .certificate(distinguishedName: "CN=vm-7,O=Strata")) == nil)
    #expect(access.refusal(of: .certificate(distinguishedName: "CN=alice,O=Strata2")) != nil)
    #expect(access.refusal(of: .certificate(distinguishedName: "O=x,CN=vm-7,O=Strata")) != nil)
    #expect(access.refusal(of: .preSharedKey(identity: "alice")) == nil)
    #expect(access.refusal(of: .preSharedKey(identity: "Alice")) != nil)
    #expect(access.refusal(of: .anonymous) != nil)
  }
}

@Suite struct `A pattern` {
  @Test(arguments: [
    ("", ""), ("a", "a"), ("abc", "*"), ("", "*"), ("abc", "a*"), ("abc", "*c"), ("abc", "a*c"),
    ("abbbc", "a*b*c"), ("abc", "???"), ("abc", "*?"), ("aab", "*ab"), ("ab", "a**b"),
  ])
  func `matches`(text: String, pattern: String) {
    #expect(Glob.matches(text, pattern: pattern))
  }

  @Test(arguments: [
    ("a", ""), ("", "?"), ("abc", "ab"), ("abc", "bc"), ("abc", "a*b"), ("abc", "????"),
    ("abc", "ABC"), ("ab", "a?b"),
  ])
  func `does not match`(text: String, pattern: String) {
    #expect(!Glob.matches(text, pattern: pattern))
  }

  @Test func `of many stars ends soon`() {
    let text = String(repeating: "a", count: 2_000)
    #expect(!Glob.matches(text, pattern: String(repeating: "a*", count: 200) + "b"))
  }
}

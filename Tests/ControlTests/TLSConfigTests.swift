// SPDX-License-Identifier: Apache-2.0
//
// Which options of TLS go together, and who may use an export.

import Control
import DataPlane
import NBDProtocol
import TLS
import Testing

@Suite struct `Options of TLS` {
  @Test func `are not needed`() { #expect(refusal { _ in } == nil) }

  @Test func `mean that TLS is required where there are credentials and nothing else is said`() {
    var config = ServerConfig.valid()
    #expect(config.tlsPolicy == .off)
    config.tls.keysPath = "keys.psk"
    #expect(config.tlsPolicy == .required)
    config.exports[0].access.tls = .offered
    #expect(config.tlsPolicy == .offered)
    config.exports[0].access.tls = .off
    #expect(config.tlsPolicy == .off)
  }

  // proto.md, "SELECTIVETLS".
  @Test func `make TLS selective where one export requires it and another does not`() {
    var config = ServerConfig.valid()
    config.tls.keysPath = "keys.psk"
    config.exports.append(.valid("/images/vm2.qcow2"))
    #expect(config.tlsPolicy == .required)
    config.exports[1].access.tls = .off
    #expect(config.tlsPolicy == .offered)
  }

  @Test func `need credentials to be of use`() {
    #expect(refusal { $0.exports[0].access.tls = .required } == "--tls")
    #expect(refusal { $0.exports[0].access.tls = .offered } == "--tls")
    #expect(refusal { $0.exports[0].access.tls = .off } == nil)
    #expect(refusal { $0.tls.priority = "NORMAL" } == "--tls-priority")
    #expect(refusal { $0.tls.verifiesPeer = true } == "--tls-verify-peer")
    #expect(
      refusal { $0.exports[0].access.allowedIdentities = ["alice"] } == "--tls-allow-psk-identity")
  }

  @Test func `are for certificates or for shared keys`() {
    #expect(
      refusal {
        $0.tls.certificatesPath = "/etc/pki"
        $0.tls.keysPath = "keys.psk"
      } == "--tls-psk")
  }

  @Test func `allow names only where they are checked, and only where TLS is`() {
    func named(_ change: (inout ServerConfig) -> Void) -> String? {
      refusal { config in
        config.tls.certificatesPath = "/etc/pki"
        config.exports[0].access.allowedNames = ["CN=*"]
        change(&config)
      }
    }
    #expect(named { _ in } == "--tls-allow-dn")
    #expect(named { $0.tls.verifiesPeer = true } == nil)
    #expect(
      named {
        $0.tls.verifiesPeer = true
        $0.exports[0].access.tls = .off
      } == "--tls")
  }
}

@Suite struct `Access of a client that TLS has proved` {
  private func access(_ rules: PeerAccess, _ peer: TLSPeer) -> ExportAccess {
    rules.access(of: Caller(peer: .unknown, tls: peer))
  }

  @Test func `is granted to everybody that has a key or a good certificate, without lists`() {
    let rules = PeerAccess()
    #expect(access(rules, .anonymous) == .open)
    #expect(access(rules, .preSharedKey(identity: "alice")) == .open)
    #expect(access(rules, .certificate(distinguishedName: "CN=alice")) == .open)
  }

  @Test func `is never granted with a certificate that is not good`() {
    var rules = PeerAccess()
    #expect(
      access(rules, .refusedCertificate(reason: "expired")) == .refused(reason: "expired"))
    rules.allowedNames = ["*"]
    rules.allowedIdentities = ["alice"]
    #expect(
      access(rules, .refusedCertificate(reason: "expired")) == .refused(reason: "expired"))
  }

  @Test func `is by the whole name and the exact identity`() {
    var rules = PeerAccess()
    rules.allowedNames = ["CN=alice,O=Strata", "CN=vm-*,O=Strata"]
    rules.allowedIdentities = ["alice"]
    func isOpen(_ peer: TLSPeer) -> Bool { access(rules, peer) == .open }
    #expect(isOpen(.certificate(distinguishedName: "CN=alice,O=Strata")))
    #expect(isOpen(.certificate(distinguishedName: "CN=vm-7,O=Strata")))
    #expect(!isOpen(.certificate(distinguishedName: "CN=alice,O=Strata2")))
    #expect(!isOpen(.certificate(distinguishedName: "O=x,CN=vm-7,O=Strata")))
    #expect(isOpen(.preSharedKey(identity: "alice")))
    #expect(!isOpen(.preSharedKey(identity: "Alice")))
    #expect(!isOpen(.anonymous))
  }

  @Test func `is to nobody when the list of names is there and empty`() {
    var rules = PeerAccess()
    rules.allowedNames = []
    #expect(access(rules, .certificate(distinguishedName: "CN=alice")) != .open)
  }
}

@Suite struct `Access of a client that has proved nothing` {
  @Test func `needs TLS where that is required, or where a name is asked for`() {
    let plain = Caller(peer: .unknown, tls: nil)
    var rules = PeerAccess()
    #expect(rules.access(of: plain) == .open)
    rules.allowedNames = ["CN=*"]
    #expect(rules.access(of: plain) == .needsTLS)
    rules = PeerAccess()
    rules.requiresTLS = true
    #expect(rules.access(of: plain) == .needsTLS)
  }

  // CVE-2013-6410: numbers that only begin alike are different.
  @Test func `is by the exact user or group, and never over a network`() {
    func isOpen(_ rules: PeerAccess, _ user: UInt32, _ group: UInt32) -> Bool {
      rules.access(
        of: Caller(peer: .unix(userID: user, groupID: group, processID: 1), tls: nil)) == .open
    }
    var rules = PeerAccess()
    rules.allowedUserIDs = [10]
    #expect(isOpen(rules, 10, 7))
    for other in [0, 1, 100, 101, 1_010] as [UInt32] { #expect(!isOpen(rules, other, 10)) }
    rules.allowedGroupIDs = [20]
    #expect(isOpen(rules, 11, 20))
    #expect(!isOpen(rules, 20, 10))
    #expect(rules.access(of: Caller(peer: .unknown, tls: nil)) != .open)
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

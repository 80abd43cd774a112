// SPDX-License-Identifier: Apache-2.0
//
// Addresses of exports. Spec: uri.md of the NBD project; RFC 3986.

import NBDProtocol
import Testing

private func parsed(_ text: String) throws -> NBDURI { try NBDURI(text) }

/// What the parser says about a text; nil when it takes it.
private func fault(_ text: String) -> String? {
  do throws(NBDURIFault) {
    _ = try NBDURI(text)
    return nil
  } catch {
    return error.description
  }
}

@Suite struct `An NBD URI` {
  @Test(
    arguments: [
      ("nbd://example.com/disk", "disk"), ("nbd://example.com/", ""), ("nbd://example.com", ""),
      ("nbd://example.com//disk", "/disk"), ("nbd://example.com/hello%20world", "hello world"),
      ("nbd+unix:///disk?socket=sock", "disk"), ("nbd+unix://?socket=sock", ""),
      ("nbd://h/a/b:c@d", "a/b:c@d"), ("nbd://h/%C3%BC", "ü"), ("nbd://h/%2f%3F", "/?"),
    ])
  func `names the export behind its first slash`(_ text: String, _ name: String) throws {
    // uri.md "NBD URI export name"
    #expect(try parsed(text).exportName == name)
  }

  @Test(
    arguments: [
      ("nbd://localhost", NBDURI.Endpoint.tcp(host: "localhost", port: 10809)),
      ("nbd://localhost:1/x", .tcp(host: "localhost", port: 1)),
      ("nbd://localhost:/x", .tcp(host: "localhost", port: 10809)),
      ("nbd+tcp://10.0.0.1:65535", .tcp(host: "10.0.0.1", port: 65535)),
      ("nbd://[::1]", .tcp(host: "::1", port: 10809)),
      ("nbd://[fe80::1%25eth0]:99/", .tcp(host: "fe80::1%eth0", port: 99)),
      ("nbd:///x", .tcp(host: nil, port: 10809)),
      ("NBD://Host", .tcp(host: "Host", port: 10809)),
      ("nbd+unix:///?socket=/run/a%20b.sock", .unix(path: "/run/a b.sock")),
      ("nbd+unix:///?socket=%00/abstract", .unix(path: "\0/abstract")),
      // uri.md, "NBD URI socket parameter": abstract begins with NUL; this is a file's name.
      ("nbd+unix:///?socket=@name", .unix(path: "@name")),
      ("nbd+vsock://2", .vsock(contextID: 2, port: 10809)),
      ("nbd+vsock://4294967295:4294967295/e", .vsock(contextID: .max, port: .max)),
    ])
  func `says where the server is`(_ text: String, _ endpoint: NBDURI.Endpoint) throws {
    let uri = try parsed(text)
    #expect(uri.endpoint == endpoint)
    #expect(!uri.requiresTLS)
  }

  @Test func `asks for TLS by its scheme and says how in its query`() throws {
    // uri.md "NBD URI query parameters related to TLS"
    let uri = try parsed(
      "nbds+unix://alice@/e?socket=s&tls-type=psk&tls-hostname=h&tls-verify-peer=0"
        + "&tls-psk-file=/k&tls-certificates=/c&x-own=1")
    #expect(uri.requiresTLS)
    #expect(uri.userName == "alice")
    #expect(uri.tls.kind == .psk)
    #expect(uri.tls.hostname == "h")
    #expect(uri.tls.verifiesPeer == false)
    #expect(uri.tls.keyFile == "/k")
    #expect(uri.tls.certificatesFolder == "/c")
    #expect(try parsed("nbds://h").requiresTLS)
    #expect(try parsed("nbds+vsock://3").requiresTLS)
  }

  @Test(
    arguments: [
      ("", "no scheme"), ("disk", "no scheme"), ("nbd:unix:/s", "no scheme"),
      ("http://h", "\"http\""), ("nbd+ssh://h", "\"nbd+ssh\""), ("nbdx://h", "\"nbdx\""),
      ("nbd://h/a b", "%XX"), ("nbd://h/ü", "%XX"), ("nbd://h/#f", "fragment"),
      ("nbd://h/%", "export name has a %"), ("nbd://h/%4", "export name has a %"),
      ("nbd://h/%zz", "export name has a %"), ("nbd://h/%ff", "not UTF-8"),
      ("nbd://h/%00", "NUL"), ("nbd://h%zz/", "the host has a %"),
      ("nbd://h:0", "1 to 65535"), ("nbd://h:65536", "1 to 65535"), ("nbd://h:x", "\"x\""),
      ("nbd://h:+1", "\"+1\""), ("nbd://h:99999999999", "not a number"),
      ("nbd://::1", "in brackets"), ("nbd://[::1", "no ]"), ("nbd://[h]", "no IPv6"),
      ("nbd://[::1]x", "follows the host"), ("nbd+unix:///", "socket=PATH"),
      ("nbd+unix://host/?socket=s", "\"host\""), ("nbd+unix:///?socket=", "empty"),
      ("nbd+unix:///?socket=a%00b", "middle"), ("nbd+unix:///?socket", "no value"),
      ("nbd+unix:///?socket=a&socket=b", "twice"), ("nbd://h/?socket=s", "belongs to nbd+unix"),
      ("nbd://h/?what=1", "\"what\""), ("nbds://h/?tls-type=x", "anon, x509, psk"),
      ("nbds://h/?tls-verify-peer=yes", "neither 0 nor 1"), ("nbd+vsock://", "\"\" is none"),
      ("nbd+vsock://x", "\"x\" is none"), ("nbd+vsock://4294967296", "is none"),
    ])
  func `that is wrong is refused by the name of its fault`(_ text: String, _ words: String) {
    #expect(fault(text)?.contains(words) == true, "\(text): \(fault(text) ?? "taken")")
  }

  @Test func `holds a name of 4096 bytes and a path of 107, and no more`() throws {
    let name = String(repeating: "n", count: 4096)
    let path = String(repeating: "p", count: 107)
    #expect(try parsed("nbd+unix:///\(name)?socket=\(path)").exportName == name)
    #expect(fault("nbd+unix:///\(name)n?socket=\(path)")?.contains("4096") == true)
    #expect(fault("nbd+unix:///\(name)?socket=\(path)p")?.contains("at most 107") == true)
    let long = "nbd://h/" + String(repeating: "x", count: NBDURI.byteCountMax)
    #expect(fault(long)?.contains("longer than") == true)
  }

  @Test(
    arguments: [
      "nbd://localhost/", "nbd://localhost:1/a/b%20c", "nbd://[::1]:2/", "nbd:///x",
      "nbd+unix:///e%3F?socket=/run/a%20b.sock", "nbd+unix:///?socket=%00/abstract",
      "nbds://bob@h/?tls-type=x509&tls-hostname=n&tls-verify-peer=1", "nbd+vsock://2:1/%2Fq",
      "nbd://h//double",
    ])
  func `reads back as what it was`(_ text: String) throws {
    let uri = try parsed(text)
    #expect(try parsed(uri.description) == uri, "\(uri)")
  }

  @Test func `is told from the name of a file`() {
    for text in ["nbd://h", "nbds+unix:///", "NBD+UNIX://", "nbd+what://x"] {
      #expect(NBDURI.looksLike(text))
    }
    for text in ["nbd", "disk.raw", "/a:b", "http://h", "nbd:unix:/s", "./nbd://x", ""] {
      #expect(!NBDURI.looksLike(text))
    }
  }

  @Test func `of random bytes never traps`() {
    var generator = SeededGenerator(state: 10809)
    let alphabet = Array("nbds+unixtcpvok://@[]:?&=%0Af#.-;,é \u{0}")
    for _ in 0..<20_000 {
      let head = ["nbd://", "nbd+unix://", "nbd+vsock://", ""].randomElement(using: &generator)!
      let count = Int.random(in: 0...24, using: &generator)
      let tail = (0..<count).map { _ in alphabet.randomElement(using: &generator)! }
      _ = fault(head + String(tail))
    }
  }
}

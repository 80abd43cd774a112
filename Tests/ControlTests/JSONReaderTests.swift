// SPDX-License-Identifier: Apache-2.0
//
// JSON as the control socket takes it. Source: RFC 8259.

import Bitmaps
import ImageTools
import Testing

@testable import Control

private func read(_ text: String) throws -> JSONValue { try JSONReader.read(Array(text.utf8)) }

@Suite struct `A JSON text` {
  @Test(
    arguments: [
      ("null", .null), (" true ", .bool(true)), ("\t-0\r\n", .integer(0)), ("[]", .array([])),
      ("9223372036854775807", .integer(.max)), ("-9223372036854775808", .integer(.min)),
      ("{}", .object([:])),
      ("[1,[2],{}]", .array([.integer(1), .array([.integer(2)]), .object([:])])),
      (
        #"{"a":{"b":[false]},"":""}"#,
        .object(["a": .object(["b": .array([.bool(false)])]), "": .string("")])
      ),
      (#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é""#, .string("\"\\/\u{8}\u{c}\n\r\té😀é")),
    ] as [(String, JSONValue)])
  func `is read`(text: String, value: JSONValue) throws { #expect(try read(text) == value) }

  @Test(arguments: [
    "", " ", "nul", "nulll", "+1", "01", "-", "1.0", "1e3", "9223372036854775808", "'a'",
    "\"", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud83d\"", "\"\\ud83d\\u0041\"",
    "\"\\udc00\"", "\"\u{1}\"", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "]", "{", "{\"a\"",
    "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{a:1}", "{1:1}", "{\"a\" 1}",
    "{\"a\":1,\"a\":1}", "1 1", "{}}", "\u{feff}1",
  ])
  func `that is not strict is refused`(text: String) {
    #expect(throws: JSONFault.self) { try read(text) }
  }

  @Test func `may be 8 levels deep and not 9`() throws {
    _ = try read(String(repeating: "[", count: 8) + "1" + String(repeating: "]", count: 8))
    #expect(throws: JSONFault.self) {
      try read(String(repeating: "[", count: 9) + "1" + String(repeating: "]", count: 9))
    }
    #expect(throws: JSONFault.self) { try read(String(repeating: "[", count: 60_000)) }
  }

  @Test func `that is not UTF-8 is refused`() {
    #expect(throws: JSONFault(reason: "it is not UTF-8", offset: 0)) {
      try JSONReader.read([0x22, 0xff, 0x22])
    }
  }

  @Test func `cut anywhere is refused`() throws {
    let text = Array(#"{"ask":"kick","client":17,"list":[true,null,"\u00e9"]}"#.utf8)
    _ = try JSONReader.read(text)
    for count in 0..<text.count {
      #expect(throws: JSONFault.self, "\(count)") { try JSONReader.read(Array(text[..<count])) }
    }
  }

  @Test func `comes back as it was written, in one line`() throws {
    var json = JSONWriter(layout: .oneLine)
    json.beginObject()
    json.field("a", "line\nfeed \"\\ é \u{7f}")
    json.beginArray("b")
    json.field(nil, 1)
    json.field(nil, -2)
    json.end()
    json.field("c", true)
    json.end()
    let text = json.finish()
    #expect(!text.contains("\n"))
    #expect(
      try read(text)
        == .object([
          "a": .string("line\nfeed \"\\ é \u{7f}"), "b": .array([.integer(1), .integer(-2)]),
          "c": .bool(true),
        ]))
  }
}

private let requests: [ControlRequest] = [
  .status(export: nil), .status(export: "a \"b\""), .exports, .reload, .clients,
  .kick(client: 0), .kick(client: 77), .bitmaps(export: nil),
  .resize(byteCount: 1 << 40, export: "e"),
  .changeBitmap(.add(name: "a \"b", granularityByteCount: 512, isEnabled: false), export: nil),
  .changeBitmap(.remove(name: "a"), export: "e"),
  .changeBitmap(.merge(sources: ["b", "c"], target: "a"), export: nil),
  .changeBitmap(.freeze(name: "a"), export: nil),
  .changeBitmap(.thaw(name: "a", .failed), export: nil),
  .transaction(
    [
      .clear(name: "a"), .enable(name: "b"), .disable(name: "c"),
      .add(name: "d", granularityByteCount: 2 << 30, isEnabled: true),
    ], export: "e"),
]

@Suite struct `A control request` {
  @Test(arguments: requests)
  func `is what its line says`(request: ControlRequest) throws {
    #expect(try ControlRequest(parsing: Array(request.line.utf8)) == request)
  }

  @Test func `may be written in another order, with blanks`() throws {
    let line = #" { "client" : 5 , "ask" : "kick" } "#
    #expect(try ControlRequest(parsing: Array(line.utf8)) == .kick(client: 5))
  }

  @Test func `does not get a long name back whole`() {
    let line = #"{"ask":"\#(String(repeating: "x", count: 60_000))"}"#
    do throws(RequestFault) {
      _ = try ControlRequest(parsing: Array(line.utf8))
      Issue.record("it was taken")
    } catch { #expect(error.reason.utf8.count < 120) }
  }
}

@Suite struct `Status for people` {
  @Test func `has ratios with one decimal, and aligned columns`() throws {
    let status = try read(
      #"{"export":"a\u001bb","disk-bytes":1073741824,"read-only":true,"uptime-seconds":93784,"#
        + #""requests":{"total":1000,"bytes":4096000},"#
        + #""commands":{"read":{"requests":1000,"bytes":4096000,"errors":0}},"#
        + #""system-calls":{"total":2150,"io-submit":600,"receive":550,"send":500,"#
        + #""epoll-wait":500}}"#
    )
    let lines = StatusText.text(of: status).split(separator: "\n")
    #expect(lines[0] == "export       a?b, 1 GiB, read-only")
    #expect(lines[1] == "uptime       1 d 02:03:04")
    #expect(lines.contains("command  requests  per second     bytes  errors"))
    #expect(lines.contains("read         1000         0.0  3.91 MiB       0"))
    #expect(
      lines.contains(
        "system calls per request: 2.2 (io_submit 0.6, receive 0.6, send 0.5, epoll_wait 0.5)"))
  }

  @Test func `of a daemon that says nothing is all noughts`() throws {
    #expect(StatusText.text(of: .object([:])).contains("system calls per request: none yet"))
    #expect(ClientsText.text(of: .object([:])) == "no clients\n")
  }
}

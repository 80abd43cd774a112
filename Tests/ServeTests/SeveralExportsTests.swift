// SPDX-License-Identifier: Apache-2.0
//
// Several exports in one process, from the command line and from a file. Source: stratad(8).

import Foundation
import TestSupport
import Testing

extension ServeFixture {
  /// Another disk of `byteCount` zeroes beside the first.
  func disk(_ name: String, byteCount: Int = 1 << 20) -> String {
    let path = folder.path(name)
    _ = FileManager.default.createFile(atPath: path, contents: Data(count: byteCount))
    return path
  }
}

@Suite struct `A server of several exports` {
  @Test func `keeps them apart, and gives the first to those who name none`() throws {
    let fixture = try ServeFixture()
    let other = fixture.disk("other.raw", byteCount: 2 << 20)
    let server = try fixture.serve("--export", "second=\(other),format=raw")
    let first = try WireClient.entered(path: fixture.socket)
    let named = try WireClient.entered(path: fixture.socket, export: "disk.raw")
    let second = try WireClient.entered(path: fixture.socket, export: "second")
    #expect(first.size == 1 << 20)
    #expect(second.size == 2 << 20)
    #expect(try first.write(0, [1]) == 0)
    #expect(try second.write(0, [2]) == 0)
    #expect(try named.read(0, 2).data == [1, 0])
    #expect(try second.read(0, 2).data == [2, 0])
    #expect(try WireClient.entered(path: fixture.socket, export: "").read(0, 1).data == [1])
    let listed = try runTool("nbdinfo", "--list", "nbd+unix:///?socket=\(fixture.socket)").output
    #expect(listed.contains("export=\"disk.raw\":"))
    #expect(listed.contains("export=\"second\":"))
    #expect(server.stop() == 0)
  }

  @Test func `gives each its own options`() throws {
    let fixture = try ServeFixture()
    let other = fixture.disk("b,c.raw")
    let server = try fixture.serve(
      "--export",
      "two=\(other.replacing(",", with: ",,")),format=raw,read-only,block-size=4096"
        + ",description=a,, b,export-connections=1")
    let first = try WireClient.entered(path: fixture.socket)
    #expect(try first.write(1, [1]) == 0)
    let second = try WireClient.entered(path: fixture.socket, export: "two")
    #expect(second.transmissionFlags & 2 != 0)
    #expect(try second.write(0, [UInt8](repeating: 1, count: 4_096)) == 1)
    #expect(try second.read(1, 1).error == 22)
    // The place is taken: the next one is told so, and the other export is open.
    let third = try WireClient(path: fixture.socket)
    try third.greet()
    try third.sendOption(7, wire(UInt32(3)) + Array("two".utf8) + wire(UInt16(0)))
    let refusal = try third.receiveOptionReply()
    #expect(refusal.type == 0x8000_0002)
    #expect(String(decoding: refusal.payload, as: UTF8.self).contains("1 clients use this export"))
    try third.go("", requests: [])
    #expect(try third.read(0, 2).data == [0, 1])
    #expect(server.stop() == 0)
  }

  @Test func `stays whole when one of them breaks, and names that one at the end`() throws {
    let fixture = try ServeFixture()
    let base = fixture.disk("base.raw")
    let overlay = fixture.folder.path("overlay.qcow2")
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    let server = try fixture.serve("--export", "two=\(overlay)")
    let first = try WireClient.entered(path: fixture.socket)
    #expect(try first.write(0, [7]) == 0)
    // Somebody writes to a base that is in use: a fault that the end reports.
    utimes(base, nil)
    #expect(server.stop() == 1)
    #expect(server.errorText.contains("base.raw: this backing file was changed"))
    #expect(FileManager.default.contents(atPath: fixture.image)?.first == 7)
  }

  @Test func `makes all of them durable when it stops`() throws {
    let fixture = try ServeFixture()
    let paths = (0..<4).map { fixture.folder.path("\($0).qcow2") }
    for path in paths { try run("qemu-img", "create", "-q", "-f", "qcow2", path, "8M") }
    let server = try ServedProcess(
      stratad: ["--socket", fixture.socket]
        + paths.flatMap { ["--export", "d\($0.suffix(7).first!)=\($0)"] }
    ).waitUntilReady()
    for number in 0..<4 {
      let client = try WireClient.entered(path: fixture.socket, export: "d\(number)")
      #expect(try client.write(0, [UInt8](repeating: UInt8(number + 1), count: 70_000)) == 0)
    }
    #expect(server.stop() == 0)
    for (number, path) in paths.enumerated() {
      try run("qemu-img", "check", "-q", path)
      try run("qemu-io", "-r", "-c", "read -P \(number + 1) 0 70000", path)
    }
  }

  @Test func `hides their names when told so, and serves who knows one`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--hide-exports")
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    try client.sendOption(3)
    #expect(try client.receiveOptionReply().type == 0x8000_0002)
    try client.go("disk.raw", requests: [])
    #expect(server.stop() == 0)
  }

  @Test func `shows them and tells their status by name`() throws {
    let fixture = try ServeFixture()
    let other = fixture.disk("other.raw")
    let server = try fixture.serveControlled("--export", "second=\(other),format=raw,read-only")
    let client = try WireClient.entered(path: fixture.socket, export: "second")
    _ = try client.read(0, 4_096)
    func ask(_ line: String) throws -> Answer {
      try ControlConnection.ask(line, at: fixture.control)
    }
    let exports = try ask(#"{"ask":"exports"}"#)["exports"].list
    #expect(exports.map { $0["export"].text } == ["disk.raw", "second"])
    #expect(exports.map { $0["read-only"].isTrue } == [false, true])
    #expect(exports.map { $0["connections"]["now"].number } == [0, 1])
    let status = try ask(#"{"ask":"status","export":"second"}"#)
    #expect(status["commands"]["read"]["requests"].number == 1)
    #expect(
      try ask(#"{"ask":"status"}"#)["error"].text
        == #"there are 2 exports; say which: "export":"NAME""#)
    #expect(
      try ask(#"{"ask":"status","export":"third"}"#)["error"].text
        == #"there is no export "third""#)
    #expect(try fixture.clients().map { $0["export"].text } == ["second"])
    let strata = try ServedProcess.path(of: "strata")
    let text = try runTool(strata, "exports", fixture.control).output.split(separator: "\n")
    #expect(text.map { $0.split(separator: " ").first } == ["export", "disk.raw", "second"])
    #expect(
      try runTool(strata, "status", fixture.control, "--export", "second").output
        .hasPrefix("export       second, 1 MiB, read-only\n"))
    #expect(server.stop() == 0)
  }
}

@Suite struct `A configuration file of a server` {
  private func file(_ text: String, _ fixture: ServeFixture) throws -> String {
    let path = fixture.folder.path("strata.conf")
    try text.write(toFile: path, atomically: false, encoding: .utf8)
    return path
  }

  @Test func `names exports and options, and the command line counts more`() throws {
    let fixture = try ServeFixture()
    let other = fixture.disk("other.raw")
    let path = try file(
      """
      # as on the command line
      [server]
      socket = \(fixture.socket)
      block-size = 512
      control = /nowhere/at/all

      [export one]
      image = \(fixture.image)
      format = raw
      [export the other]
      image = \(other)
      format = raw
      read-only = yes
      block-size = 4096
      """, fixture)
    let server = try ServedProcess(
      stratad: ["--config", path, "--control", fixture.control]
    ).waitUntilReady()
    let one = try WireClient.entered(path: fixture.socket)
    #expect(try one.read(512, 512).error == 0)
    #expect(try one.read(1, 1).error == 22)
    let two = try WireClient.entered(path: fixture.socket, export: "the other")
    #expect(try two.read(512, 512).error == 22)
    #expect(two.transmissionFlags & 2 != 0)
    #expect(try fixture.clients().count == 2)
    #expect(server.stop() == 0)
  }

  @Test(arguments: [
    ("[server]\nno-such-key = 1\n", 2), ("[server]\nconfig = x\n", 2),
    ("[export a]\nformat = raw\n", 1), ("[export a]\nimage = x\nread-only = perhaps\n", 3),
    ("[export a]\nimage = x\nformat = vmdk\n", 3), ("[export a]\nimage = x\nsocket = x\n", 3),
  ])
  func `that is wrong is refused with its line`(text: String, line: Int) throws {
    let fixture = try ServeFixture()
    let path = try file(text, fixture)
    let message = try ServeFixture.refusal(["--config", path], code: 2)
    #expect(message.hasPrefix("stratad: \(path):\(line): "), "\(message)")
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The control socket itself: whose it is, and what hostile clients of it cannot do.
// Source: stratad(8), "CONTROL SOCKET".

import Foundation
import TestSupport
import Testing

@Suite struct `The control socket` {
  private func status(of path: String) -> stat? {
    var status = stat()
    return lstat(path, &status) == 0 ? status : nil
  }

  @Test func `is for its owner only, whatever the mode of the other one`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--socket-mode", "0777")
    #expect(try #require(status(of: fixture.control)).st_mode & 0o7777 == 0o600)
    _ = server
  }

  @Test(.enabled(if: isRoot, "needs root"))
  func `belongs to the owner of the other one`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--socket-owner", "54321:54322")
    let control = try #require(status(of: fixture.control))
    #expect(control.st_uid == 54_321)
    #expect(control.st_gid == 54_322)
    _ = server
  }

  @Test func `is not there unless it was asked for`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    #expect(!ServeFixture.exists(fixture.control))
    _ = server
  }

  @Test func `goes at the end`() throws {
    let fixture = try ServeFixture(ownerID: isRoot ? 65_534 : nil)
    let server = try fixture.serveControlled()
    #expect(ServeFixture.exists(fixture.control))
    #expect(server.stop() == 0)
    #expect(!ServeFixture.exists(fixture.control))
    #expect(!ServeFixture.exists(fixture.socket))
  }

  @Test func `of a server that died is replaced`() throws {
    let fixture = try ServeFixture()
    try fixture.serveControlled().stop(with: SIGKILL)
    let server = try fixture.serveControlled()
    #expect(try fixture.status()["export"].text == "disk.raw")
    _ = server
  }

  @Test func `cannot be where something answers or a file is, and nothing is left then`() throws {
    let fixture = try ServeFixture()
    let same = try ServeFixture.refusal(fixture.arguments + ["--control", fixture.socket])
    #expect(same.hasPrefix("stratad: control socket \(fixture.socket): the address is taken"))
    #expect(!ServeFixture.exists(fixture.socket))
    let file = try ServeFixture.refusal(fixture.arguments + ["--control", fixture.image])
    #expect(file.contains("a file that is not a socket is there"))
    #expect(!ServeFixture.exists(fixture.socket))
    #expect(ServeFixture.exists(fixture.image))
  }

  // Capabilities belong to a thread (capabilities(7)).
  @Test(.enabled(if: isRoot, "needs root"))
  func `is served by a thread without privileges`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    _ = try fixture.status()
    let threads = try FileManager.default.contentsOfDirectory(
      atPath: "/proc/\(server.processID)/task")
    #expect(threads.count > 1)
    for thread in try threads.map({ try #require(pid_t($0)) }) {
      #expect(try ServedProcess.status(of: "NoNewPrivs", thread) == "1")
      #expect(try ServedProcess.status(of: "CapEff", thread) == "0000000000000000")
      #expect(try ServedProcess.status(of: "Uid", thread).split(separator: "\t")[0] != "0")
    }
  }

  @Test func `is closed within two seconds of a stop, whoever is connected`() throws {
    let fixture = try ServeFixture(ownerID: isRoot ? 65_534 : nil)
    let server = try fixture.serveControlled()
    let clients = try (0..<16).map { _ in try ControlConnection(fixture.control) }
    for client in clients.prefix(8) { try client.send(#"{"ask":"sta"#) }
    for client in clients.dropFirst(8) { _ = try client.ask(#"{"ask":"status"}"#) }
    let start = Date()
    #expect(server.stop() == 0)
    #expect(Date().timeIntervalSince(start) < 2)
    #expect(server.errorText == "")
    #expect(!ServeFixture.exists(fixture.control))
    for client in clients { #expect(try client.socket.receiveUntilEnd() == []) }
  }
}

@Suite struct `A control client` {
  @Test(arguments: [
    ("", "the line is no JSON: it ends where a value should be, at byte 0"),
    ("status", "the line is no JSON: no value starts like this, at byte 0"),
    ("[]", #"the line is no object such as {"ask":"status"}"#),
    ("{}", #"there is no "ask""#),
    (#"{"ask":7}"#, #"the value of "ask" is no string"#),
    (#"{"ask":"reboot"}"#, #""reboot" cannot be asked; stratad(8) lists what can"#),
    (#"{"ask":"bitmap-add"}"#, #"bitmap-add needs "name", a bitmap's name"#),
    (
      #"{"ask":"bitmap-add","name":"a","granularity":"1k"}"#,
      #"the value of "granularity" is no number of bytes"#
    ),
    (
      #"{"ask":"bitmap-add","name":"a","granularity":1024,"eternal":true}"#,
      #"bitmap-add has no member "eternal""#
    ),
    (
      #"{"ask":"bitmap-add","name":"a","granularity":1000}"#,
      "the granularity 1000 is no power of two in 512...2147483648"
    ),
    (#"{"ask":"bitmap-clear","name":"a"}"#, #"there is no bitmap "a""#),
    (
      #"{"ask":"bitmap-thaw","name":"a","backup":"maybe"}"#,
      #"the value of "backup" is no word of "done" and "failed""#
    ),
    (
      #"{"ask":"bitmap-merge","sources":[1],"target":"a"}"#,
      #"the value of "sources" is no list of bitmaps' names"#
    ),
    (#"{"ask":"transaction","actions":[]}"#, "a transaction has 1...64 actions"),
    (
      #"{"ask":"transaction","actions":[{"ask":"kick","client":1}]}"#,
      #""kick" is no action of a transaction; those that begin with bitmap- are"#
    ),
    (
      #"{"ask":"transaction","actions":[{"ask":"bitmap-clear","name":"a","x":1}]}"#,
      #"bitmap-clear has no member "x""#
    ),
    (#"{"ask":"status","client":1}"#, #"status has no member "client""#),
    (#"{"ask":"kick"}"#, #"kick needs "client", a client's number"#),
    (#"{"ask":"kick","client":"1"}"#, #"the value of "client" is no client's number"#),
    (#"{"ask":"kick","client":-1}"#, #"the value of "client" is no client's number"#),
    (#"{"ask":"status"} {}"#, "the line is no JSON: something follows its end, at byte 17"),
  ])
  func `that errs is told what is wrong, and may go on`(line: String, reason: String) throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try ControlConnection(fixture.control)
    #expect(try client.ask(line)["error"].text == reason)
    #expect(try client.ask(#"{"ask":"status"}"#)["export"].text == "disk.raw")
    #expect(server.isAlive)
  }

  @Test func `may send many lines at once, and gets the answers in order`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try ControlConnection(fixture.control)
    let lines = (0..<200).map { #"{"ask":"kick","client":\#($0 + 1_000)}"# }
    try client.send(lines.joined(separator: "\n") + "\n")
    for number in 0..<200 {
      #expect(
        try client.receiveLine() == #"{"error":"there is no client \#(number + 1_000)"}"#)
    }
    _ = server
  }

  @Test func `may send a line byte by byte, and end its side before the answer`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let client = try ControlConnection(fixture.control)
    for character in #"{"ask":"clients"}"# { try client.send(String(character)) }
    try client.send("\n")
    client.socket.shutDownSending()
    #expect(try client.receiveLine().hasPrefix(#"{"clients":[],"#))
    #expect(try client.socket.receiveUntilEnd() == [])
    let hasty = try ControlConnection(fixture.control)
    try hasty.send(#"{"ask":"clients"}"#)
    hasty.socket.shutDownSending()
    #expect(try hasty.receiveLine() == #"{"error":"the last line has no line feed"}"#)
    _ = server
  }

  @Test func `may send a line of 65,536 bytes and not of 65,537`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let request = #"{"ask":"clients"}"#
    let blanks = String(repeating: " ", count: 65_536 - request.utf8.count)
    let client = try ControlConnection(fixture.control)
    #expect(try client.ask(request + blanks)["clients"].value != nil)
    let reason = "the line is longer than 65536 bytes"
    #expect(try client.ask(request + blanks + " ")["error"].text == reason)
    #expect(try client.socket.receiveUntilEnd() == [])
    // One that never ends its line is told as soon.
    let endless = try ControlConnection(fixture.control)
    _ = try endless.socket.sendSome([UInt8](repeating: 0x20, count: 100_000)[...])
    #expect(try Answer(try endless.receiveLine())["error"].text == reason)
    #expect(try fixture.status()["export"].text == "disk.raw")
    _ = server
  }

  @Test func `is one of 16; the next one is refused by name`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    var clients = try (0..<16).map { _ in try ControlConnection(fixture.control) }
    #expect(try clients[15].ask(#"{"ask":"clients"}"#)["clients"].value != nil)
    let reason = "16 control connections are open, and there may be no more"
    let late = try ControlConnection(fixture.control)
    #expect(try Answer(try late.receiveLine())["error"].text == reason)
    #expect(try late.socket.receiveUntilEnd() == [])
    let result = try runTool(ServedProcess.path(of: "strata"), "status", fixture.control)
    #expect(result.code == 1)
    #expect(result.error.contains(reason))
    clients.removeFirst()
    let deadline = Date(timeIntervalSinceNow: 5)
    while try fixture.status()["error"].text != nil, Date() < deadline { usleep(2_000) }
    #expect(try fixture.status()["export"].text == "disk.raw")
    _ = server
  }

  @Test func `that is silent, slow or gone holds nobody up`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let silent = try (0..<6).map { _ in try ControlConnection(fixture.control) }
    for client in silent.prefix(3) { try client.send(#"{"ask":"#) }
    // These ask and ask, and never read an answer.
    let lines = [UInt8](String(repeating: "{\"ask\":\"status\"}\n", count: 20_000).utf8)
    let greedy = try (0..<4).map { _ in try ControlConnection(fixture.control) }
    for client in greedy { _ = try client.socket.sendSome(lines[...]) }
    for _ in 0..<50 {
      let hasty = try ControlConnection(fixture.control)
      try hasty.send("{\"ask\":\"clients\"}\n")
      hasty.socket.abandon()
    }
    let client = try WireClient.entered(path: fixture.socket)
    let start = Date()
    for _ in 0..<100 {
      #expect(try client.read(0, 4_096).error == 0)
      #expect(try fixture.statusWhenThereIsRoom()["export"].text == "disk.raw")
    }
    #expect(Date().timeIntervalSince(start) < 5)
    #expect(server.stop() == 0)
    _ = (silent, greedy)
  }

  @Test func `of the command line says what is wrong with a path`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let program = try ServedProcess.path(of: "strata")
    let none = try runTool(program, "status", fixture.folder.path("none"))
    #expect(none.code == 1)
    #expect(
      none.error == "strata: \(fixture.folder.path("none")): connect: No such file or directory;"
        + " name the socket that stratad was given with --control\n")
    let export = try runTool(program, "status", fixture.socket)
    #expect(export.code == 1)
    #expect(export.error.contains("name the socket that stratad was given with --control"))
    _ = server
  }
}

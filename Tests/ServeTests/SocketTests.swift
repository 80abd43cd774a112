// SPDX-License-Identifier: Apache-2.0
//
// The UNIX socket of an export: its mode and owner, its path, and who was there before.
// Source: unix(7).

import Foundation
import TestSupport
import Testing

@Suite struct `The socket` {
  private func mode(of path: String) -> UInt32? {
    var status = stat()
    return lstat(path, &status) == 0 ? status.st_mode & 0o7777 : nil
  }

  @Test func `is for its owner only, unless told otherwise`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    #expect(mode(of: fixture.socket) == 0o600)
    _ = server
  }

  @Test(
    arguments: [("0660", 0o660), ("600", 0o600), ("0777", 0o777), ("0", 0)] as [(String, UInt32)])
  func `has the mode that was asked for`(text: String, expected: UInt32) throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--socket-mode", text)
    #expect(mode(of: fixture.socket) == expected)
    _ = server
  }

  @Test(arguments: ["0888", "01777", "rw", "", "-1"])
  func `has no other mode than an octal one`(text: String) throws {
    let fixture = try ServeFixture()
    let message = try ServeFixture.refusal(
      fixture.arguments + ["--socket-mode=\(text)"], code: 2)
    #expect(message.contains("--socket-mode"))
  }

  @Test func `never has a wider mode, not even at its first moment`() throws {
    let fixture = try ServeFixture()
    let trace = fixture.folder.path("trace")
    let server = try ServedProcess(
      stratad: fixture.arguments + ["--socket-mode", "0640"],
      prefix: [
        "strace", "-D", "-o", trace, "-e",
        "trace=umask,bind,listen,chmod,fchmod,fchmodat,chown,lchown",
      ])
    try server.waitUntilReady()
    #expect(mode(of: fixture.socket) == 0o640)
    #expect(server.stop() == 0)
    let lines = try traceLines(of: server, in: trace)
    let bind = try #require(lines.firstIndex { $0.contains("bind(") })
    let before = try #require(lines[..<bind].last)
    #expect(before.hasPrefix("umask(0137)"))
    #expect(!lines.contains { $0.contains("chmod") })
  }

  @Test(.enabled(if: isRoot, "needs root"))
  func `belongs to the asked owner before it listens`() throws {
    let fixture = try ServeFixture()
    let trace = fixture.folder.path("trace")
    let server = try ServedProcess(
      stratad: fixture.arguments + ["--socket-owner", "54321:54322"],
      prefix: ["strace", "-D", "-o", trace, "-e", "trace=listen,lchown"])
    try server.waitUntilReady()
    var status = stat()
    #expect(lstat(fixture.socket, &status) == 0)
    #expect(status.st_uid == 54_321)
    #expect(status.st_gid == 54_322)
    #expect(server.stop() == 0)
    let lines = try traceLines(of: server, in: trace)
    let chown = try #require(lines.firstIndex { $0.contains("chown(") })
    let listen = try #require(lines.firstIndex { $0.contains("listen(") })
    #expect(chown < listen)
  }

  @Test func `has an owner that exists`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(fixture.arguments + ["--socket-owner", "no-such-user"])
    #expect(text.contains("--socket-owner: there is no user 'no-such-user'"))
  }

  // unix(7): sun_path has 108 bytes with the final zero.
  @Test func `may have a path of 107 bytes and not of 108`() throws {
    let fixture = try ServeFixture()
    let name = String(repeating: "x", count: 107 - fixture.folder.root.utf8.count - 1)
    let path = fixture.folder.path(name)
    let arguments = [fixture.image, "--format", "raw", "--socket"]
    let server = try ServedProcess(stratad: arguments + [path]).waitUntilReady()
    #expect(server.stop() == 0)
    let text = try ServeFixture.refusal(arguments + [path + "y"])
    #expect(
      text == "stratad: socket \(path)y: the path has 108 bytes, and a UNIX socket's path has at"
        + " most 107; choose a shorter path, for instance below /run\n")
  }

  @Test func `replaces that of a server that was killed`() throws {
    let fixture = try ServeFixture()
    let first = try fixture.serve()
    #expect(first.stop(with: SIGKILL) == 128 + SIGKILL)
    #expect(ServeFixture.exists(fixture.socket))
    let second = try fixture.serve()
    _ = try WireSocket(connectingTo: fixture.socket)
    #expect(second.stop() == 0)
  }

  @Test func `never replaces that of a server that lives`() throws {
    let fixture = try ServeFixture()
    let first = try fixture.serve()
    let other = try ServeFixture()
    let text = try ServeFixture.refusal(
      [other.image, "--format", "raw", "--socket", fixture.socket])
    #expect(
      text == "stratad: socket \(fixture.socket): the address is taken: something answers there;"
        + " stop the other server, or listen elsewhere\n")
    _ = try WireSocket(connectingTo: fixture.socket)
    #expect(first.stop() == 0)
  }

  @Test func `never replaces a file`() throws {
    let fixture = try ServeFixture()
    try Data("precious".utf8).write(to: URL(fileURLWithPath: fixture.socket))
    let text = try ServeFixture.refusal(fixture.arguments)
    #expect(text.contains("a file that is not a socket is there; it is left alone"))
    #expect(try String(contentsOfFile: fixture.socket, encoding: .utf8) == "precious")
  }

  @Test func `never replaces a symbolic link`() throws {
    let fixture = try ServeFixture()
    symlink(fixture.folder.path("elsewhere"), fixture.socket)
    let text = try ServeFixture.refusal(fixture.arguments)
    #expect(text.contains("a file that is not a socket is there"))
    #expect(ServeFixture.exists(fixture.socket))
  }

  @Test(.enabled(if: isRoot, "needs root"))
  func `never replaces an old one of somebody else`() throws {
    let fixture = try ServeFixture()
    let first = try fixture.serve()
    first.stop(with: SIGKILL)
    lchown(fixture.socket, 54_321, 54_321)
    let text = try ServeFixture.refusal(fixture.arguments)
    #expect(text.contains("an old socket of user 54321 is there; it is left alone"))
    #expect(try fixture.serve("--socket-owner", "54321:54321").stop() == 0)
  }

  @Test(.enabled(if: isRoot, "needs root"))
  func `is removed at the end where the worker may change the folder`() throws {
    let fixture = try ServeFixture(ownerID: 65_534)
    let server = try fixture.serve()
    #expect(ServeFixture.exists(fixture.socket))
    #expect(server.stop() == 0)
    #expect(!ServeFixture.exists(fixture.socket))
  }

  @Test func `is not removed when another one took its place`() throws {
    let fixture = try ServeFixture(ownerID: isRoot ? 65_534 : nil)
    let server = try fixture.serve()
    unlink(fixture.socket)
    let other = try ServeFixture()
    let second = try ServedProcess(
      stratad: [other.image, "--format", "raw", "--socket", fixture.socket]
    ).waitUntilReady()
    #expect(server.stop() == 0)
    _ = try WireSocket(connectingTo: fixture.socket)
    #expect(second.stop() == 0)
  }

  @Test func `is not left behind by a start that fails`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(
      fixture.arguments + ["--pidfile", fixture.folder.path("none/pid")])
    #expect(text.contains("pidfile"))
    #expect(!ServeFixture.exists(fixture.socket))
  }

  @Test func `of two that start at once is had by one`() throws {
    let folder = try TemporaryFolder()
    let socket = folder.path("s")
    for _ in 0..<10 {
      let fixtures = try (0..<4).map { _ in try ServeFixture() }
      let servers = try fixtures.map {
        try ServedProcess(stratad: [$0.image, "--format", "raw", "--socket", socket])
      }
      var readyCount = 0
      for server in servers {
        do {
          try server.waitUntilReady()
          readyCount += 1
        } catch {
          #expect(server.errorText.contains("the address is taken"))
        }
      }
      #expect(readyCount == 1)
      _ = try WireSocket(connectingTo: socket)
      for server in servers where server.isAlive { #expect(server.stop() == 0) }
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// How others learn that an export is ready, or that it will never be.
// Source: sd_notify(3), sd_listen_fds(3).

import Foundation
import TestSupport
import Testing

@Suite struct `Readiness` {
  @Test func `is one word on the descriptor, when a client can connect`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve()
    #expect(server.outputText == "ready\n")
    _ = try WireSocket(connectingTo: fixture.socket)
    #expect(server.stop() == 0)
    #expect(server.outputText == "ready\n")
    #expect(server.errorText == "")
  }

  @Test func `comes within milliseconds`() throws {
    let fixture = try ServeFixture()
    var best = Double.infinity
    for _ in 0..<5 {
      let start = Date()
      let server = try fixture.serve()
      best = min(best, Date().timeIntervalSince(start))
      server.stop()
    }
    #expect(best < 0.25)  // A debug build on a busy machine; a release build takes some 10 ms.
  }

  @Test func `closes the descriptor`() throws {
    let server = try ServeFixture().serve()
    let deadline = Date(timeIntervalSinceNow: 2)
    while ServeFixture.exists("/proc/\(server.processID)/fd/1") && Date() < deadline {
      usleep(1_000)
    }
    #expect(!ServeFixture.exists("/proc/\(server.processID)/fd/1"))
  }

  @Test func `needs a descriptor that is open`() throws {
    let fixture = try ServeFixture()
    let process = try ServedProcess(
      [try ServedProcess.path(of: "stratad")] + fixture.arguments + ["--ready-fd", "60000"])
    #expect(try process.waitForExit() == 1)
    #expect(process.errorText == "stratad: --ready-fd: descriptor 60000 is not open\n")
  }

  @Test func `of a failed start is never said, and the cause is`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(
      [fixture.folder.path("none"), "--format", "raw", "--socket", fixture.socket])
    #expect(
      text == "stratad: \(fixture.folder.path("none")): open: No such file or directory;"
        + " check the name\n")
  }

  @Test func `is told to the service manager, and so is the stop`() throws {
    let fixture = try ServeFixture()
    let manager = try NotifyListener(fixture.folder.path("notify"))
    let server = try fixture.serve(environment: ["NOTIFY_SOCKET": manager.path])
    #expect(try manager.receive() == "READY=1\nMAINPID=\(server.processID)\n")
    #expect(server.stop() == 0)
    #expect(try manager.receive() == "STOPPING=1\n")
  }

  @Test func `is a line for QEMU with the absolute path`() throws {
    let fixture = try ServeFixture()
    let relative = ["sh", "-c", "cd '\(fixture.folder.root)' && exec \"$@\"", "sh"]
    let server = try ServedProcess(
      stratad: [fixture.image, "--format", "raw", "--socket", "s", "--print-drive"],
      prefix: relative
    ).waitUntilReady()
    #expect(
      server.outputText
        == "-drive file=nbd:unix:\(fixture.socket),format=raw,if=virtio\nready\n")
  }

  @Test func `needs an address to listen on`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal([fixture.image, "--format", "raw"])
    #expect(text == "stratad: no address to listen on; say --socket PATH or --tcp HOST:PORT\n")
  }

  @Test func `comes on a socket that the service manager passed`() throws {
    let fixture = try ServeFixture()
    let listener = try PassedListener(fixture.socket)
    let server = try ServedProcess(
      stratad: [fixture.image, "--format", "raw"],
      prefix: ["sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"],
      descriptor3: listener.descriptor
    ).waitUntilReady()
    #expect(
      try runTool("nbdinfo", "--size", "nbd+unix:///?socket=\(fixture.socket)").output
        == "1048576\n")
    #expect(server.stop() == 0)
    #expect(ServeFixture.exists(fixture.socket))
  }

  @Test func `does not take descriptors that were passed to another process`() throws {
    let fixture = try ServeFixture()
    let process = try ServedProcess(
      stratad: [fixture.image, "--format", "raw"],
      environment: ["LISTEN_FDS": "1", "LISTEN_PID": "1"])
    #expect(try process.waitForExit() == 1)
    #expect(process.errorText.contains("no address to listen on"))
  }

  @Test func `does not take a passed descriptor that does not listen`() throws {
    let fixture = try ServeFixture()
    let file = open(fixture.image, O_RDONLY)
    defer { close(file) }
    let process = try ServedProcess(
      stratad: [fixture.image, "--format", "raw"],
      prefix: ["sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"], descriptor3: file)
    #expect(try process.waitForExit() == 1)
    #expect(process.errorText.contains("not a listening stream socket"))
  }
}

@Suite struct `The pidfile` {
  @Test func `has the process's number, and goes at the end`() throws {
    let fixture = try ServeFixture(ownerID: isRoot ? 65_534 : nil)
    let path = fixture.folder.path("pid")
    let server = try fixture.serve("--pidfile", path)
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "\(server.processID)\n")
    #expect(server.stop() == 0)
    #expect(!ServeFixture.exists(path))
  }

  @Test(.enabled(if: isRoot, "needs root"))
  func `is empty at the end where the worker may not remove it`() throws {
    let fixture = try ServeFixture()
    let path = fixture.folder.path("pid")
    #expect(try fixture.serve("--pidfile", path).stop() == 0)
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "")
    #expect(try fixture.serve("--pidfile", path).stop() == 0)
  }

  @Test func `of a process that lives is kept`() throws {
    let fixture = try ServeFixture()
    let path = fixture.folder.path("pid")
    let server = try fixture.serve("--pidfile", path)
    let other = try ServeFixture()
    let text = try ServeFixture.refusal(other.arguments + ["--pidfile", path])
    #expect(text.contains("pidfile \(path): create (its process lives): File exists"))
    #expect(!ServeFixture.exists(other.socket))
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "\(server.processID)\n")
  }

  @Test func `of a process that died is replaced`() throws {
    let fixture = try ServeFixture()
    let path = fixture.folder.path("pid")
    try fixture.serve("--pidfile", path).stop(with: SIGKILL)
    let server = try fixture.serve("--pidfile", path)
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "\(server.processID)\n")
  }

  @Test func `does not follow a symbolic link`() throws {
    let fixture = try ServeFixture()
    let path = fixture.folder.path("pid")
    try Data("precious".utf8).write(to: URL(fileURLWithPath: fixture.folder.path("target")))
    symlink(fixture.folder.path("target"), path)
    _ = try ServeFixture.refusal(fixture.arguments + ["--pidfile", path])
    #expect(
      try String(contentsOfFile: fixture.folder.path("target"), encoding: .utf8) == "precious")
  }
}

@Suite struct `--fork` {
  private func run(_ arguments: [String]) throws -> (code: Int32, output: String, error: String) {
    let process = try ServedProcess([try ServedProcess.path(of: "stratad"), "--fork"] + arguments)
    return (try process.waitForExit(), process.outputText, process.errorText)
  }

  @Test func `returns when the export is ready, and the child serves`() throws {
    let fixture = try ServeFixture()
    let path = fixture.folder.path("pid")
    let result = try run(fixture.arguments + ["--pidfile", path, "--print-drive"])
    #expect(result.code == 0)
    #expect(result.error == "")
    #expect(result.output.hasPrefix("-drive file=nbd:unix:"))
    _ = try WireSocket(connectingTo: fixture.socket)
    let child = try #require(
      pid_t(String(contentsOfFile: path, encoding: .utf8).trimmingCharacters(in: .newlines)))
    if isRoot { #expect(try ServedProcess.status(of: "CapEff", child) == "0000000000000000") }
    for descriptor in 0...2 {
      let link = "/proc/\(child)/fd/\(descriptor)"
      #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link) == "/dev/null")
    }
    #expect(getsid(child) == child)
    kill(child, SIGTERM)
    let deadline = Date(timeIntervalSinceNow: 10)
    while kill(child, 0) == 0 && Date() < deadline { usleep(2_000) }
    #expect(kill(child, 0) != 0)
  }

  @Test func `returns the error of a start that fails`() throws {
    let fixture = try ServeFixture()
    let result = try run(["\(fixture.image).none", "--format", "raw", "--socket", fixture.socket])
    #expect(result.code == 1)
    #expect(
      result.error == "stratad: \(fixture.image).none: open: No such file or directory;"
        + " check the name\n")
  }

  @Test func `returns the error of a failure after the image was opened`() throws {
    let fixture = try ServeFixture()
    let result = try run(fixture.arguments + ["--user", "no-such-user"])
    #expect(result.code == 1)
    #expect(result.error.contains("there is no user"))
  }
}

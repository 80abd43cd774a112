// SPDX-License-Identifier: Apache-2.0
//
// What an export process has left of its privileges. Source: proc(5), capabilities(7).

import Foundation
import TestSupport
import Testing

@Suite(.enabled(if: isRoot, "needs root"))
struct `stratad that is started as root` {
  @Test func `becomes an unprivileged user with no other groups`() throws {
    let server = try ServeFixture().serve()
    let userID = try server.status(of: "Uid").split(separator: "\t")
    #expect(Set(userID).count == 1)
    #expect(userID.first != "0")
    let groupID = try server.status(of: "Gid").split(separator: "\t")
    #expect(Set(groupID).count == 1)
    #expect(groupID.first != "0")
    #expect(try server.status(of: "Groups") == "")
    #expect(server.stop() == 0)
  }

  @Test(arguments: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
  func `has no capability in any set`(field: String) throws {
    let server = try ServeFixture().serve()
    #expect(try server.status(of: field) == "0000000000000000")
  }

  @Test func `has no_new_privs in every thread`() throws {
    let server = try ServeFixture().serve()
    let threads = try FileManager.default.contentsOfDirectory(
      atPath: "/proc/\(server.processID)/task")
    for thread in try threads.map({ try #require(pid_t($0)) }) {
      #expect(try ServedProcess.status(of: "NoNewPrivs", thread) == "1")
      #expect(try ServedProcess.status(of: "CapEff", thread) == "0000000000000000")
      #expect(try ServedProcess.status(of: "Uid", thread) == server.status(of: "Uid"))
    }
  }

  // proc(5): the files of a process that is not dumpable belong to root.
  @Test func `cannot be dumped nor watched by its own user`() throws {
    let server = try ServeFixture().serve()
    var status = stat()
    #expect(stat("/proc/\(server.processID)/fd", &status) == 0)
    #expect(status.st_uid == 0)
    let limits = try String(contentsOfFile: "/proc/\(server.processID)/limits", encoding: .utf8)
    let core = try #require(limits.split(separator: "\n").first { $0.hasPrefix("Max core file") })
    #expect(core.split(separator: " ").filter { $0 == "0" }.count == 2)
  }

  @Test func `becomes the user and group that --user names`() throws {
    let server = try ServeFixture().serve("--user", "54321:54322")
    #expect(try server.status(of: "Uid") == "54321\t54321\t54321\t54321")
    #expect(try server.status(of: "Gid") == "54322\t54322\t54322\t54322")
  }

  @Test func `stays root on demand, without capabilities`() throws {
    let server = try ServeFixture().serve("--user", "root")
    #expect(try server.status(of: "Uid") == "0\t0\t0\t0")
    #expect(try server.status(of: "CapPrm") == "0000000000000000")
    #expect(try server.status(of: "NoNewPrivs") == "1")
    #expect(server.stop() == 0)
  }

  @Test func `refuses a user that does not exist`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(fixture.arguments + ["--user", "no-such-user"])
    #expect(
      text == "stratad: --user: there is no user 'no-such-user'; name one that exists\n")
    #expect(!ServeFixture.exists(fixture.socket))
  }

  @Test func `opens no file after it is ready`() throws {
    let fixture = try ServeFixture(ownerID: 65_534)
    let trace = fixture.folder.path("trace")
    let server = try ServedProcess(
      stratad: fixture.arguments,
      prefix: ["strace", "-D", "-f", "-o", trace, "-e", "trace=%file,write,memfd_create"])
    try server.waitUntilReady()
    let tail = try runTool("nbdinfo", "--size", "nbd+unix:///?socket=\(fixture.socket)")
    #expect(tail.output == "1048576\n")
    try runTool(
      "qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "discard 0 4k", "-c", "flush",
      "nbd+unix:///?socket=\(fixture.socket)")
    #expect(server.stop() == 0)
    let lines = try traceLines(of: server, in: trace)
    let ready = try #require(lines.firstIndex { $0.contains(#"write(1, "ready\n""#) })
    let opens = lines[ready...].filter { $0.contains("open") && !$0.contains("= -1") }
    #expect(opens == [])
  }
}

@Suite(.enabled(if: isRoot, "needs root, to become somebody else first"))
struct `stratad that is started by a normal user` {
  private func serve(_ fixture: ServeFixture, _ more: [String] = []) throws -> ServedProcess {
    // The build folder may be closed to others; the program is not.
    let program = fixture.folder.path("stratad")
    try copyProgram("stratad", to: program)
    let words =
      ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program]
      + fixture.arguments + ["--ready-fd", "1"] + more
    return try ServedProcess(words)
  }

  @Test func `stays that user, with no way up`() throws {
    let fixture = try ServeFixture(ownerID: 65_534)
    let server = try serve(fixture).waitUntilReady()
    #expect(try server.status(of: "Uid") == "65534\t65534\t65534\t65534")
    #expect(try server.status(of: "CapPrm") == "0000000000000000")
    #expect(try server.status(of: "NoNewPrivs") == "1")
    #expect(server.stop() == 0)
  }

  @Test func `cannot become another`() throws {
    let fixture = try ServeFixture(ownerID: 65_534)
    let server = try serve(fixture, ["--user", "daemon"])
    #expect(try server.waitForExit() == 1)
    #expect(server.errorText.contains("only root can become another user"))
  }

  @Test func `is told when it may not open the image`() throws {
    let fixture = try ServeFixture()
    chmod(fixture.image, 0o600)
    let server = try serve(fixture)
    #expect(try server.waitForExit() == 1)
    #expect(server.errorText.contains("\(fixture.image): open: Permission denied; "))
  }

  @Test func `is told when it may only read the image`() throws {
    let fixture = try ServeFixture()
    chmod(fixture.image, 0o644)
    let server = try serve(fixture)
    #expect(try server.waitForExit() == 1)
    #expect(server.errorText.contains("Permission denied"))
    #expect(server.errorText.contains("read-only"))
  }

  @Test func `is told when it may not make the socket`() throws {
    let fixture = try ServeFixture()
    chmod(fixture.image, 0o666)
    let server = try serve(fixture)
    #expect(try server.waitForExit() == 1)
    #expect(
      server.errorText.contains("socket \(fixture.socket): bind: Permission denied; check"))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Addresses besides a path and a port: abstract names, inherited sockets, those of a service
// manager by their names, several at once. Source: stratad(8); unix(7); sd_listen_fds(3).

import Foundation
import TestSupport
import Testing

/// Runs stratad with listening sockets from descriptor 3 on, as a service manager does, and tells
/// it about them as `environment` says, in which PID stands for its number.
private func serve(
  paths: [String], environment: [String: String], _ arguments: [String]
) throws -> ServedProcess {
  let script = """
    import os, socket, sys
    paths, words = sys.argv[1].split('|'), sys.argv[2:]
    for number, path in enumerate(paths):
        s = socket.socket(socket.AF_UNIX)
        s.bind(path + '~')
        s.listen()
        os.rename(path + '~', path)
        os.dup2(s.fileno(), 100 + number)
    for number in range(len(paths)):
        os.dup2(100 + number, 3 + number, inheritable=True)
        os.close(100 + number)
    for name, value in list(os.environ.items()):
        if value == 'PID': os.environ[name] = str(os.getpid())
    os.execv(words[0], words)
    """
  let process = try ServedProcess(
    ["/usr/bin/python3", "-c", script, paths.joined(separator: "|")]
      + [try ServedProcess.path(of: "stratad")] + arguments, environment: environment)
  // They listen before the program starts, so that who connects from then on has to be served.
  let deadline = Date(timeIntervalSinceNow: 20)
  while !paths.allSatisfy(ServeFixture.exists), Date() < deadline { usleep(5_000) }
  return process
}

@Suite struct `An abstract socket` {
  @Test func `serves who knows its name and is allowed`() throws {
    let fixture = try ServeFixture()
    let name = "strata-test-\(getpid())-\(UInt64.random(in: 0 ... .max))"
    let server = try ServedProcess(
      stratad: [
        fixture.image, "--format", "raw", "--socket", "@\(name)", "--socket", fixture.socket,
        "--allow-uid", "\(getuid())",
      ]
    ).waitUntilReady()
    let script = """
      import socket, sys
      s = socket.socket(socket.AF_UNIX)
      s.connect('\\0' + sys.argv[1])
      print(s.recv(8).decode())
      """
    #expect(try runTool("/usr/bin/python3", "-c", script, name).output == "NBDMAGIC\n")
    #expect(try WireClient.entered(path: fixture.socket).size == 1 << 20)
    #expect(server.stop() == 0)
  }

  @Test func `is refused where every user of the machine could use it`() throws {
    let fixture = try ServeFixture()
    let message = try ServeFixture.refusal([
      fixture.image, "--format", "raw", "--socket", "@strata-\(getpid())",
    ])
    #expect(message.contains("every user of this machine could connect to it"))
  }
}

@Suite struct `An address that is a URI` {
  @Test func `is listened on`() throws {
    let fixture = try ServeFixture()
    let server = try ServedProcess(
      stratad: [
        fixture.image, "--format", "raw", "--listen", "nbd+unix:///?socket=\(fixture.socket)",
      ]
    ).waitUntilReady()
    #expect(try WireClient.entered(path: fixture.socket).size == 1 << 20)
    #expect(server.stop() == 0)
  }

  @Test(arguments: [
    "http://a", "nbds://127.0.0.1", "nbd+unix:///name?socket=/run/x", "nbd+unix:///",
  ])
  func `is refused when it says more than where`(uri: String) throws {
    let fixture = try ServeFixture()
    let message = try ServeFixture.refusal(
      [fixture.image, "--format", "raw", "--listen", uri], code: 2)
    #expect(message.contains("--listen: "), "\(message)")
  }
}

@Suite struct `Inherited sockets` {
  @Test func `are served by number`() throws {
    let fixture = try ServeFixture()
    let server = try serve(
      paths: [fixture.socket], environment: [:], [fixture.image, "--format", "raw", "--fd", "3"])
    let client = try WireClient.entered(path: fixture.socket)
    #expect(client.size == 1 << 20)
    #expect(server.stop() == 0)
  }

  @Test func `of a service manager are for control when they are called so`() throws {
    let fixture = try ServeFixture()
    let server = try serve(
      paths: [fixture.control, fixture.socket],
      environment: ["LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "control:disk"],
      [fixture.image, "--format", "raw"])
    let client = try WireClient.entered(path: fixture.socket)
    #expect(client.size == 1 << 20)
    #expect(try fixture.clients().count == 1)
    #expect(server.stop() == 0)
  }

  @Test func `need as many names as there are sockets`() throws {
    let fixture = try ServeFixture()
    let server = try serve(
      paths: [fixture.socket],
      environment: ["LISTEN_PID": "PID", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"],
      [fixture.image, "--format", "raw"])
    #expect(try server.waitForExit() == 1)
    #expect(server.errorText.contains("LISTEN_FDNAMES: there are 2 names for 1 sockets"))
  }

  @Test func `have to be listening`() throws {
    let fixture = try ServeFixture()
    let message = try ServeFixture.refusal([fixture.image, "--format", "raw", "--fd", "0"])
    #expect(message.contains("--fd 0: "))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// An internal snapshot as an export, as qemu-nbd -l serves it. Spec: qcow2.rst, "Snapshots".

import Foundation
import TestSupport
import Testing

@Suite struct `An export of a snapshot` {
  private func fixture() throws -> (fixture: ServeFixture, image: String) {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    for words in [
      ["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"],
      ["qemu-io", "-c", "write -P 1 0 1M", image], ["qemu-img", "snapshot", "-c", "old", image],
      ["qemu-img", "resize", "-q", image, "2M"], ["qemu-io", "-c", "write -P 2 0 2M", image],
    ] {
      let result = try runTool(words)
      try #require(result.code == 0, "\(result)")
    }
    return (fixture, image)
  }

  @Test func `has the bytes and the size of then, and refuses writes`() throws {
    let (fixture, image) = try fixture()
    for choice in ["old", "1"] {
      let server = try ServedProcess(
        stratad: [image, "--socket", fixture.socket, "--snapshot", choice]
      ).waitUntilReady()
      let client = try WireClient.entered(path: fixture.socket)
      #expect(client.size == 1 << 20)
      #expect(try client.read(0, 1 << 20).data == [UInt8](repeating: 1, count: 1 << 20))
      #expect(try client.write(0, [7]) == WireErrno.notPermitted)
      #expect(server.stop() == 0)
    }
  }

  @Test func `is one of several of the same image`() throws {
    let (fixture, image) = try fixture()
    let server = try ServedProcess(
      stratad: [
        "--export", "now=\(image),read-only", "--export", "then=\(image),snapshot=old",
        "--socket", fixture.socket,
      ]
    ).waitUntilReady()
    let now = try WireClient.entered(path: fixture.socket, export: "now")
    let then = try WireClient.entered(path: fixture.socket, export: "then")
    #expect(now.size == 2 << 20)
    #expect(then.size == 1 << 20)
    #expect(try now.read(0, 512).data == [UInt8](repeating: 2, count: 512))
    #expect(try then.read(0, 512).data == [UInt8](repeating: 1, count: 512))
    #expect(server.stop() == 0)
  }

  @Test func `that is not there is refused`() throws {
    let (fixture, image) = try fixture()
    let text = try ServeFixture.refusal(
      [image, "--socket", fixture.socket, "--snapshot", "nix"])
    #expect(text.contains("no snapshot with the id or name 'nix'"))
    let raw = try ServeFixture.refusal(fixture.arguments + ["--snapshot", "old"])
    #expect(raw.contains("raw image has no snapshots"))
  }
}

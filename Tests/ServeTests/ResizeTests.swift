// SPDX-License-Identifier: Apache-2.0
//
// A disk that grows, as its clients see it and as `strata resize` orders it. Spec: proto.md of the
// branch extension-resize, "NBD_CMD_RESIZE"; strata(1).

import Foundation
import TestSupport
import Testing

private let mebibyte: UInt64 = 1 << 20
private let resizeCommand: UInt16 = 8
private let sendResize: UInt16 = 1 << 9

extension WireClient {
  /// Asks for a size, which is in the field of the offset.
  fileprivate func resize(to byteCount: UInt64, length: UInt32 = 0) throws -> UInt32 {
    try wait(send(resizeCommand, offset: byteCount, length: length)).error
  }
}

@Suite struct `A disk that grows while it is served` {
  @Test func `is larger for clients that come, and for those that are there`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--bitmap", "b")
    let early = try WireClient.entered(path: fixture.socket)
    #expect(try early.write(mebibyte, [1]) == WireErrno.noSpace)
    let result = try runTool(
      ServedProcess.path(of: "strata"), "resize", fixture.control, "2M")
    #expect(result.code == 0 && result.output == "the disk has 2097152 bytes\n")
    let late = try WireClient.entered(
      path: fixture.socket, contexts: ["qemu:dirty-bitmap:b"])
    #expect(late.size == 2 * mebibyte)
    #expect(try late.read(mebibyte, 1 << 20).data == [UInt8](repeating: 0, count: 1 << 20))
    #expect(try early.write(2 * mebibyte - 1, [7]) == 0)
    #expect(try early.write(2 * mebibyte, [7]) == WireErrno.noSpace)
    let id = try #require(late.contextIDs["qemu:dirty-bitmap:b"])
    #expect(
      try late.call(.blockStatus, offset: 0, length: 2 << 20).extents[id] == [
        WireExtent(length: 2 * mebibyte - 65_536, flags: 0), WireExtent(length: 65_536, flags: 1),
      ])
    #expect(try fixture.status()["disk-bytes"].number == 2 << 20)
    #expect(late.transmissionFlags & sendResize == 0)
    #expect(server.stop() == 0)
  }

  @Test(arguments: [
    ("512k", "disks never shrink"), ("1M1", "is not a size"), ("1049000", "no multiple of"),
  ])
  func `is not resized to anything`(size: String, reason: String) throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled()
    let result = try runTool(ServedProcess.path(of: "strata"), "resize", fixture.control, size)
    #expect(result.code != 0)
    #expect(result.error.contains(reason), "\(result.error)")
    #expect(server.stop() == 0)
  }

  @Test func `grows for a client where clients may, and nobody's shrinks`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serveControlled("--client-resize", "--block-size", "4096")
    let client = try WireClient.entered(path: fixture.socket)
    let other = try WireClient.entered(path: fixture.socket)
    #expect(client.transmissionFlags & sendResize != 0)
    #expect(try client.resize(to: 3 * mebibyte) == 0)
    #expect(try client.write(3 * mebibyte - 4_096, [UInt8](repeating: 5, count: 4_096)) == 0)
    #expect(
      try other.read(3 * mebibyte - 4_096, 4_096).data == [UInt8](repeating: 5, count: 4_096))
    #expect(try client.resize(to: 3 * mebibyte) == 0)
    #expect(try client.resize(to: 2 * mebibyte) == WireErrno.notPermitted)
    #expect(try client.resize(to: 3 * mebibyte + 512) == WireErrno.invalid)
    #expect(try client.resize(to: 4 * mebibyte, length: 1) == WireErrno.invalid)
    #expect(try client.resize(to: .max) == WireErrno.invalid)
    #expect(try client.resize(to: 1 << 63) == WireErrno.noSpace)
    #expect(try WireClient.entered(path: fixture.socket).size == 3 * mebibyte)
    #expect(server.stop() == 0)
  }

  @Test func `does not grow for clients that may not, nor when it is read-only`() throws {
    let fixture = try ServeFixture()
    var server = try fixture.serveControlled()
    #expect(
      try WireClient.entered(path: fixture.socket).resize(to: 2 * mebibyte) == WireErrno.invalid)
    #expect(server.stop() == 0)
    server = try fixture.serveControlled("--client-resize", "--read-only")
    let client = try WireClient.entered(path: fixture.socket)
    #expect(client.transmissionFlags & sendResize == 0)
    #expect(try client.resize(to: 2 * mebibyte) == WireErrno.notPermitted)
    let answer = try ControlConnection.ask(
      #"{"ask":"resize","bytes":2097152}"#, at: fixture.control)
    #expect(answer["error"].text == "the export is read-only")
    #expect(server.stop() == 0)
  }
}

/// The images are judged by QEMU.
@Suite struct `A disk that nobody serves` {
  private let fixture: ServeFixture
  private var disk: String { fixture.folder.path("disk") }

  init() throws { fixture = try ServeFixture() }

  private func resize(_ words: String...) throws -> (code: Int32, output: String, error: String) {
    try runTool([ServedProcess.path(of: "strata"), "resize"] + words)
  }

  private func expectSound(byteCount: UInt64) throws {
    let info = try run("qemu-img", "info", "--output=json", disk)
    #expect(info.contains("\"virtual-size\": \(byteCount),"), "\(info)")
    #expect(try runTool("qemu-img", "check", disk).code == 0)
  }

  @Test func `grows, and shows nothing of a larger base`() throws {
    let base = fixture.folder.path("base")
    try Data([UInt8](repeating: 5, count: 3 << 20)).write(to: URL(fileURLWithPath: base))
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, "1M")
    let result = try resize(disk, "2M")
    #expect(result.code == 0, "\(result.error)")
    #expect(result.output == "the disk has 2097152 bytes\n")
    #expect(try resize(disk, "+512k").output == "the disk has 2621440 bytes\n")
    try expectSound(byteCount: 2_621_440)
    try run("qemu-io", "-c", "read -P 5 0 1M", "-c", "read -P 0 1M 1536k", disk)
  }

  @Test func `takes its bitmaps and snapshots along`() throws {
    try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
    try run("qemu-io", "-c", "write -P 7 0 64k", disk)
    try run("qemu-img", "bitmap", "--add", disk, "b")
    try run("qemu-img", "snapshot", "-c", "old", disk)
    #expect(try resize(disk, "40G").code == 0)
    try expectSound(byteCount: 40 << 30)
    let info = try run("qemu-img", "info", disk)
    #expect(info.contains("name: b") && !info.contains("in-use"), "\(info)")
    #expect(try run("qemu-img", "snapshot", "-l", disk).contains("old"))
    try run("qemu-img", "bitmap", "--remove", disk, "b")
    try run("qemu-img", "snapshot", "-a", "old", disk)
    try expectSound(byteCount: 1 << 20)
  }

  @Test func `grows with its key, and not without`() throws {
    let secret = fixture.folder.path("secret")
    try Data("open-sesame".utf8).write(to: URL(fileURLWithPath: secret))
    let object = "secret,id=key,file=\(secret)"
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "--object", object, "-o",
      "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1", disk, "1000448")
    #expect(try resize(disk, "2M").code != 0)
    let result = try resize(disk, "2M", "--key-file", secret)
    #expect(result.code == 0, "\(result.error)")
    try run(
      "qemu-io", "--object", object, "--image-opts",
      "driver=qcow2,encrypt.key-secret=key,file.filename=\(disk)", "-c", "read -P 0 0 2M")
  }

  @Test func `may be raw where that is said`() throws {
    #expect(try resize(fixture.image, "2M").code != 0)
    #expect(try resize("-f", "raw", fixture.image, "2M").code == 0)
    #expect(try Data(contentsOf: URL(fileURLWithPath: fixture.image)) == Data(count: 2 << 20))
  }

  @Test(arguments: [
    ("512k", "disks never shrink"), ("1M1", "is not a size"), ("+", "is not a size"),
    ("+1000", "no multiple of"), ("7E", "larger L1 table"), ("+7E", "larger L1 table"),
  ])
  func `is not resized to anything`(size: String, reason: String) throws {
    try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
    let result = try resize(disk, size)
    #expect(result.code != 0)
    #expect(result.error.contains(reason), "\(result.error)")
    try expectSound(byteCount: 1 << 20)
  }

  @Test func `is served by somebody, and then it is left alone`() throws {
    let server = try fixture.serveControlled()
    let result = try resize("-f", "raw", fixture.image, "2M")
    #expect(result.code != 0)
    #expect(result.error.contains("in use"), "\(result.error)")
    #expect(try resize(fixture.control, "+1M").output == "the disk has 2097152 bytes\n")
    #expect(server.stop() == 0)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Images that cannot be served: each a message with file, cause and way out, and nothing changed.

import Foundation
import TestSupport
import Testing

@Suite struct `An image that cannot be served` {
  private func serve(_ fixture: ServeFixture, _ image: String, _ more: [String] = []) throws
    -> String
  {
    let text = try ServeFixture.refusal([image, "--socket", fixture.socket] + more)
    #expect(!ServeFixture.exists(fixture.socket))
    #expect(text.hasPrefix("stratad: \(fixture.folder.root)/"))
    return text
  }

  private func make(_ words: String...) throws {
    let process = try ServedProcess(["qemu-img"] + words)
    guard try process.waitForExit() == 0 else { throw ServeError(process.errorText) }
  }

  @Test func `is raw without a word about it`() throws {
    let fixture = try ServeFixture()
    let text = try serve(fixture, fixture.image)
    #expect(text.contains("format is not said and is not guessed"))
  }

  @Test func `has no base`() throws {
    let fixture = try ServeFixture()
    let overlay = fixture.folder.path("overlay.qcow2")
    try make("create", "-q", "-f", "qcow2", "-u", "-b", "none.raw", "-F", "raw", overlay, "1M")
    let text = try serve(fixture, overlay)
    #expect(text.contains("its backing file \(fixture.folder.path("none.raw")) cannot be opened"))
  }

  @Test func `is its own base`() throws {
    let fixture = try ServeFixture()
    let overlay = fixture.folder.path("overlay.qcow2")
    try make(
      "create", "-q", "-f", "qcow2", "-u", "-b", "overlay.qcow2", "-F", "qcow2", overlay, "1M")
    #expect(try serve(fixture, overlay).contains("loops"))
  }

  @Test func `is cut short`() throws {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    try make("create", "-q", "-f", "qcow2", image, "1M")
    truncate(image, 100)
    _ = try serve(fixture, image)
  }

  @Test func `is in use by QEMU`() throws {
    let fixture = try ServeFixture()
    let qemu = try ServedProcess([
      "qemu-nbd", "-f", "raw", "-k", fixture.folder.path("q"), "-t", fixture.image,
    ])
    while !ServeFixture.exists(fixture.folder.path("q")) && qemu.isAlive { usleep(2_000) }
    let text = try serve(fixture, fixture.image, ["--format", "raw"])
    #expect(text.contains("the image is in use"))
    qemu.stop()
  }

  @Test func `is a folder`() throws {
    let fixture = try ServeFixture()
    let folder = fixture.folder.path("folder")
    mkdir(folder, 0o755)
    _ = try serve(fixture, folder, ["--format", "raw"])
  }

  @Test func `is a FIFO, and that is found without waiting for a writer`() throws {
    let fixture = try ServeFixture()
    let fifo = fixture.folder.path("fifo")
    mkfifo(fifo, 0o644)
    _ = try serve(fixture, fifo, ["--format", "raw"])
  }

  @Test func `has no whole number of blocks`() throws {
    let fixture = try ServeFixture()
    truncate(fixture.image, 1_536)
    let text = try serve(fixture, fixture.image, ["--format", "raw", "--block-size", "1k"])
    #expect(text.contains("its 1536 bytes are not a multiple of the block size 1024"))
  }

  @Test func `is told that its base was changed meanwhile, when it stops`() throws {
    let fixture = try ServeFixture()
    let overlay = fixture.folder.path("overlay.qcow2")
    try make("create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", overlay)
    let server = try ServedProcess(stratad: [overlay, "--socket", fixture.socket])
    try server.waitUntilReady()
    let base = open(fixture.image, O_WRONLY)
    #expect(write(base, "x", 1) == 1)
    close(base)
    #expect(server.stop() == 1)
    #expect(server.errorText.contains("\(fixture.image): this backing file was changed while"))
  }
}

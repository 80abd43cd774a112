// SPDX-License-Identifier: Apache-2.0
//
// QEMU 10 and libnbd 1.22, which speak extended headers by themselves, unpacked beside the
// installed ones: in `.build-images/newer/bin`, or where STRATA_NEWER_CLIENTS says. Spec: proto.md
// of the branch extension-ext-header. This file starts servers and clients.

import Foundation
import TestSupport
import Testing

/// The folder of the newer programs; nil where they are not unpacked.
private let newer: String? = {
  let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()
  let places: [String?] = [
    ProcessInfo.processInfo.environment["STRATA_NEWER_CLIENTS"],
    root.appendingPathComponent(".build-images/newer/bin").path,
  ]
  return places.compactMap(\.self).first { access($0 + "/nbdinfo", X_OK) == 0 }
}()

/// An overlay, of 6 GiB if not said, over a raw base with data in its first MiB.
private final class LargeOverlay {
  let folder: TemporaryFolder
  let daemon: Daemon

  init(_ size: String = "6G") throws {
    folder = try TemporaryFolder()
    let base = folder.path("base")
    try run("qemu-img", "create", "-q", "-f", "raw", base, size)
    try run("qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", base)
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", folder.path("disk"))
    daemon = try Daemon(
      daemonPath(), [folder.path("disk"), "--format", "qcow2", "--socket", folder.path("s")],
      socketPath: folder.path("s"))
  }

  func runNewer(_ tool: String, _ arguments: String...) throws -> String {
    try runTool("\(newer ?? "")/\(tool)", arguments)
  }

  func finish() throws {
    #expect(daemon.stop() == 0, Comment(rawValue: daemon.errorText))
    try run("qemu-img", "check", "-q", "-f", "qcow2", folder.path("disk"))
  }
}

@Suite(
  .enabled(if: newer != nil, "QEMU 10 and libnbd 1.22 are not unpacked: set STRATA_NEWER_CLIENTS"))
struct `A client that speaks extended headers` {
  @Test func `nbdinfo negotiates them and maps a hole of more than 4 GiB as one`() throws {
    let overlay = try LargeOverlay()
    let uri = overlay.daemon.uri
    #expect(try overlay.runNewer("nbdinfo", uri).contains("using extended packets"))
    let map = try overlay.runNewer("nbdinfo", "--map", uri)
    #expect(map.split(separator: "\n").count == 2, Comment(rawValue: map))
    #expect(map.contains("6441402368"), Comment(rawValue: map))
    try overlay.finish()
  }

  @Test func `qemu-nbd sees transactions of 64 bits`() throws {
    let overlay = try LargeOverlay()
    let list = try overlay.runNewer("qemu-nbd", "--list", "-k", overlay.daemon.socketPath)
    #expect(list.contains("transaction size: 64-bit"), Comment(rawValue: list))
    try overlay.finish()
  }

  @Test func `qemu-io writes without PAYLOAD_LEN, and zeroes more than 4 GiB at once`() throws {
    let overlay = try LargeOverlay()
    let text = try overlay.runNewer(
      "qemu-io", "-f", "raw", "-c", "write -P 9 5G 1M", "-c", "read -P 9 5G 1M",
      "-c", "write -z -n 64k 5500M", "-c", "read -P 0 5G 1M", "-c", "read -P 0 64k 1M",
      "-c", "read -P 7 0 64k", "-c", "flush", overlay.daemon.uri)
    #expect(text.contains("wrote 5767168000/5767168000"), Comment(rawValue: text))
    #expect(!text.contains("failed"), Comment(rawValue: text))
    try overlay.finish()
  }

  @Test func `qemu-img and nbdcopy copy and compare`() throws {
    let overlay = try LargeOverlay("256M")
    let uri = overlay.daemon.uri
    let base = overlay.folder.path("base")
    _ = try overlay.runNewer(
      "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", base, uri)
    _ = try overlay.runNewer("qemu-img", "compare", "-f", "raw", "-F", "raw", base, uri)
    let copy = overlay.folder.path("copy")
    _ = try overlay.runNewer("nbdcopy", uri, copy)
    try run("cmp", base, copy)
    try overlay.finish()
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Every image of the golden corpus in both directions: we read what QEMU wrote, QEMU reads what we
// wrote. This file starts servers and QEMU's tools.

import Foundation
import TestSupport
import Testing

@Suite struct `Each image of the corpus` {
  @Test(arguments: CorpusImage.readable)
  func `is read as QEMU reads it, and is not changed by reading`(_ image: CorpusImage) throws {
    let copy = try CorpusCopy(image)
    let before = try run("sha256sum", copy.path)
    let daemon = try copy.serve("--read-only")
    // What is served over NBD and what QEMU makes of the file are the same disk.
    try copy.runInside(
      "qemu-img", "compare", "-f", "raw", "-F", image.format, daemon.uri, "-U", copy.path)
    #expect(daemon.stop() == 0, Comment(rawValue: daemon.errorText))
    #expect(try run("sha256sum", copy.path) == before)
  }

  @Test(arguments: CorpusImage.writable)
  func `takes writes that QEMU reads back, and stays clean`(_ image: CorpusImage) throws {
    let copy = try CorpusCopy(image)
    let expected = copy.temporary.path("expected.raw")
    try copy.runInside("qemu-img", "convert", "-f", image.format, "-O", "raw", copy.path, expected)
    let daemon = try copy.serve()
    // The same requests to the export and, by QEMU's own block layer, to a raw copy.
    let size = try Int(run("stat", "-c", "%s", expected).trimmingCharacters(in: .newlines)) ?? 0
    for target in [daemon.uri, expected] { try mangle(target, size: size) }
    try run("qemu-img", "compare", "-f", "raw", "-F", "raw", daemon.uri, expected)
    #expect(daemon.stop() == 0, Comment(rawValue: daemon.errorText))
    try copy.runInside(
      "qemu-img", "compare", "-f", "raw", "-F", image.format, expected, copy.path)
    if image.format == "qcow2" {
      try copy.runInside("qemu-img", "check", "-f", "qcow2", copy.path)
    }
  }

  /// Writes, zeroes and unaligned edges all over a disk of `size` bytes.
  private func mangle(_ target: String, size: Int) throws {
    var commands: [String] = []
    var state: UInt64 = 42
    func random(_ limit: Int) -> Int {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return Int(state >> 33) % max(limit, 1)
    }
    for number in 0..<40 {
      let byteCount = min(1 + random(number % 3 == 0 ? 200_000 : 6_000), size)
      let start = random(size - byteCount + 1)
      let kind = number % 4 == 3 ? "-z" : "-P \(1 + number)"
      commands += ["-c", "write \(kind) \(start) \(byteCount)"]
    }
    commands += ["-c", "flush"]
    let output = try runTool("qemu-io", ["-f", "raw"] + commands + [target])
    #expect(!output.contains("failed"), Comment(rawValue: output))
  }

  @Test(arguments: CorpusImage.refused)
  func `that is not supported is refused by name and not touched`(_ image: CorpusImage) throws {
    let copy = try CorpusCopy(image)
    let before = try run("sha256sum", copy.path)
    #expect(throws: (any Error).self) { _ = try copy.serve() }
    #expect(try run("sha256sum", copy.path) == before)
  }
}

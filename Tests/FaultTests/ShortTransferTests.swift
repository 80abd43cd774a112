// SPDX-License-Identifier: Apache-2.0
//
// A disk that transfers a part of what it was asked for, once, made so by tools/lib/failingcall.c,
// which is preloaded. Source: read(2) and write(2), "RETURN VALUE". This file builds the library.

import Foundation
import TestSupport
import Testing

@Suite struct `A transfer that stops half way` {
  private func library(_ bench: FaultBench) throws -> String {
    let library = bench.folder.path("failingcall.so")
    let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent()
    let source = root.appendingPathComponent("tools/lib/failingcall.c").path
    try run("clang", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl")
    return library
  }

  /// Overwriting is what the first calls are about, with the header and the bitmap's directory.
  @Test(arguments: ["preadv", "pwritev2"])
  func `goes on with the rest, and costs neither a request nor a bitmap`(call: String) throws {
    let bench = try FaultBench()
    let library = try library(bench)
    let disk = bench.folder.path("disk")
    for number in 1...9 {
      try run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
      try run("qemu-io", "-c", "write -P 1 0 256k", disk)
      try run("qemu-img", "bitmap", "--add", disk, "b")
      let daemon = try bench.serve(
        ["--aio", "sync"],
        prefix: [
          requireTool("env"), "LD_PRELOAD=\(library)", "FAILING_CALL=\(call)",
          "FAILING_NUMBER=\(number)", "FAILING_ERRNO=0",
        ])
      let client = try bench.client()
      let bytes = pattern(8192, seed: number)
      #expect(try client.write(65_536, bytes) == 0)
      #expect(try client.flush() == 0)
      #expect(try client.read(65_536, 8192).data == bytes)
      try client.disconnect()
      #expect(daemon.stop() == 0)
      #expect(daemon.errorText == "", "\(call) number \(number)")
      #expect(try bench.check() == 0)
      let info = try run("qemu-img", "info", "--output=json", disk)
      #expect(info.contains("\"name\": \"b\"") && !info.contains("in-use"))
    }
  }
}

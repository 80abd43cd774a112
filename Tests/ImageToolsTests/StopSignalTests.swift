// SPDX-License-Identifier: Apache-2.0
//
// Verbs that make a file, ended by a signal. Source: signal(7); the rule is that of
// `Convert.partialSuffix`: nothing looks like a whole image that is none.

import Foundation
import Testing

@Suite struct `A verb that a signal ends` {
  @Test(arguments: [SIGINT, SIGTERM, SIGHUP])
  func `removes the file that it was making, and ends as the signal says`(
    number: Int32
  ) throws {
    for (words, unfinished) in [
      ("convert -f raw -O raw source new", "new.partial"),
      ("check -r all --to copy image", "copy"),
    ] {
      let bench = try Workbench()
      try bench.prepare(
        "dd if=/dev/urandom of=source bs=1M count=1 status=none",
        "qemu-img convert -f raw -O qcow2 source image")
      // Writes take their time, so that the signal comes before the end.
      let slow = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=pwrite64"]
      let tool = try RunningTool(
        slow + ["-e", "inject=pwrite64:delay_enter=20000000", try Workbench.strataPath]
          + words.split(separator: " ").map(String.init),
        folder: bench.folder, outputPath: "/dev/null", errorPath: "/dev/null")
      for _ in 0..<2_000 where !bench.exists(unfinished) { usleep(10_000) }
      #expect(bench.exists(unfinished))
      kill(tool.processID, number)
      #expect(tool.waitForEnd() == 128 + number)
      #expect(!bench.exists(unfinished) && !bench.exists("new"))
      #expect(bench.exists("source") && bench.exists("image"))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What a check of an image needs: memory in proportion to the clusters of the file, so that one of
// 16 TiB in full use is checked within 1 GiB. Sources: reference "security.md", 4.2 (17);
// strata(1).

import Foundation
import Testing

@Suite(.serialized) struct `A check of an image in full use` {
  /// 16 TiB are 2^28 clusters of 64 KiB: two bytes for each and 32 MiB for the program are 544 MiB.
  @Test func `needs two bytes for a cluster`() throws {
    let bench = try Workbench()
    // Code that is not optimised takes forty times as long.
    let isProduct = ProcessInfo.processInfo.environment["STRATA"] != nil
    let gibibytes = isProduct ? 1024 : 64
    let clusterCount = gibibytes << 14
    try bench.prepare(
      "qemu-img create -q -f qcow2 -o preallocation=metadata image.qcow2 \(gibibytes)G")
    let memory = 32 << 20 + 2 * clusterCount
    let result = try bench.run(
      ["prlimit", "--data=\(memory)", try Workbench.strataPath, "check", "image.qcow2"])
    #expect(result.exitCode == 0, "\(result)")
    #expect(result.output.contains("\(clusterCount)/\(clusterCount) = 100.00% allocated"))
  }
}

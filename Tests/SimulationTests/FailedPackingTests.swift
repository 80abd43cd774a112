// SPDX-License-Identifier: Apache-2.0
//
// A compressed cluster that the disk fails to write: it gives its counts back, and its neighbours
// in the same host cluster stay. Source: tools/decisions/0030.

import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

@Suite struct `A compressed cluster that cannot be written` {
  @Test(arguments: [ENOSPC, EIO])
  func `fails its request, leaks nothing, and leaves its neighbours`(errno: Int32) throws {
    let bench = try SteppedImage(compresses: true)
    #expect(try bench.write(0, version: 4) == .none)
    #expect(try bench.flush() == .none)
    let range = SteppedImage.range(ofCluster: 1)
    let payload = GuestModel.bytes(range, version: 5)
    let error = try bench.finish(.write, range, payload) { operation in
      if case .write = operation { return .failed(errno: errno) }
      return .done
    }
    #expect(error == BlockErrno(systemErrno: errno))
    #expect(try bench.write(2, version: 6) == .none)
    #expect(bench.packedClusterCount == 3)

    bench.machine.disk.isInstant = true
    try Session.settle(&bench.image)
    let (faults, leaks) = try bench.machine.check()
    #expect(faults.isEmpty)
    #expect(leaks == 0)
    for (cluster, version) in [(0, 4), (1, 0), (2, 6)] as [(UInt64, UInt32)] {
      let range = SteppedImage.range(ofCluster: cluster)
      let read = try Session.finish(&bench.image, .read, range)
      #expect(read == GuestModel.bytes(range, version: version))
    }
  }
}

extension SteppedImage {
  fileprivate var packedClusterCount: UInt64 { image.counters.packedClusterCount }
}

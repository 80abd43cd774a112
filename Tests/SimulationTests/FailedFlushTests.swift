// SPDX-License-Identifier: Apache-2.0
//
// What a flush that failed half way leaves to the next one. Found by simulation: a table that the
// disk may know by then was written beside the counts of its clusters, and not behind them.

import BlockTypes
import Glibc
import LinuxIO
import NBDProtocol
import Testing

@testable import DataPlane

@Suite struct `A flush that failed at its last step` {
  @Test func `has its tables written behind the counts by the next one`() throws {
    let bench = try SteppedImage()
    #expect(try bench.write(0) == .none)
    let l1 = bench.l1TableOffset
    let failed = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { return .failed(errno: ENOSPC) }
      return .done
    }
    #expect(failed == .noSpace)

    #expect(try bench.write(1) == .none)
    let l2 = bench.l2TableOffset
    var synchronised = false
    var wasWritten = false
    let outcome = try bench.finish(.flush) { operation in
      if case .flush = operation { synchronised = true }
      if case .write(l2, _, _) = operation {
        wasWritten = true
        #expect(synchronised, "the table goes before the counts are durable")
      }
      return .done
    }
    #expect(outcome == .none)
    #expect(wasWritten)
  }

  @Test func `is followed by one that writes the L1 table again`() throws {
    let bench = try SteppedImage()
    #expect(try bench.write(0) == .none)
    let l1 = bench.l1TableOffset
    _ = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { return .failed(errno: ENOSPC) }
      return .done
    }
    var isWritten = false
    _ = try bench.finish(.flush) { operation in
      if case .write(l1, _, _) = operation { isWritten = true }
      return .done
    }
    #expect(isWritten)
    let (faults, leakCount) = try bench.machine.check()
    #expect(faults.isEmpty && leakCount == 0)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A slice of the simulations, and the judge before disks that lie. tools/simulate runs thousands.
// Source: reference "How trusted storage systems are tested", deterministic simulation.

import BlockTypes
import Foundation
import LinuxIO
import Testing

@testable import DataPlane

@Suite struct `A simulated power cut at every change of the disk` {
  @Test(arguments: 0..<2)
  func `leaves an image without corruption, with all that was flushed`(part: UInt64) {
    for seed in stride(from: part + 1, through: 12, by: 2) {
      do {
        let tally = try Simulation.run(seed: seed)
        #expect(tally.requestCount > 0)
      } catch {
        Issue.record("seed \(seed) (\(Simulation.describe(seed: seed))): \(error)")
      }
    }
  }

  @Test(arguments: Scenario.Family.allCases.filter { $0 != .drawn })
  func `leaves the same whatever the seeds have in common`(family: Scenario.Family) {
    for seed in 1...(family == .outgrown ? 3 : 10) as ClosedRange<UInt64> {
      do {
        let tally = try Simulation.run(seed: seed, family: family)
        #expect(tally.requestCount > 0)
      } catch {
        let scenario = Simulation.describe(seed: seed, family: family)
        Issue.record("seed \(seed) of \(family) (\(scenario)): \(error)")
      }
    }
  }

  @Test func `gives the same for the same seed`() throws {
    #expect(try Simulation.run(seed: 5) == Simulation.run(seed: 5))
  }

  @Test func `shows that a disk ignores flushes`() {
    let noticed = (1...6).filter { seed in
      do {
        _ = try Simulation.run(seed: UInt64(seed), lie: .ignoresFlushes)
        return false
      } catch { return error is Breach }
    }
    #expect(noticed.count > 2, "only \(noticed) were noticed")
  }

  @Test func `shows that a disk writes to the wrong place`() {
    let noticed = (1...6).filter { seed in
      do {
        _ = try Simulation.run(seed: UInt64(seed), lie: .misdirectsWrites)
        return false
      } catch { return true }
    }
    #expect(noticed.count > 2, "only \(noticed) were noticed")
  }
}

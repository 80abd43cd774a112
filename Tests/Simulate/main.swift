// SPDX-License-Identifier: Apache-2.0
//
// The program of tools/simulate: seeds FIRST, FIRST + STEP, ... up to LAST, of the family that a
// word names.

import Glibc

let words = CommandLine.arguments.dropFirst()
let numbers = words.compactMap { UInt64($0) }
guard numbers.count == 3 else {
  fatalError("Simulate [FAMILY] FIRST LAST STEP")
}
let family = words.lazy.compactMap { Scenario.Family(rawValue: $0) }.first ?? .drawn
var tally = SimulationTally()
var passed = 0
var failed = 0
for seed in stride(from: numbers[0], through: numbers[1], by: Int(numbers[2])) {
  announce(seed)
  do {
    tally += try Simulation.run(seed: seed, family: family)
    passed += 1
  } catch {
    failed += 1
    say("seed \(seed) (\(Simulation.describe(seed: seed, family: family))): \(error)")
  }
}
say("total \(passed) \(failed) \(tally.stateCount) \(tally.skippedCount)")

/// Leaves the seed for whoever looks at a crash.
func announce(_ seed: UInt64) {
  guard getenv("STRATA_SIMULATE_VERBOSE") != nil else { return }
  say("seed \(seed)")
}

/// A line that is out even if the next thing is a trap.
func say(_ line: String) {
  let bytes = Array((line + "\n").utf8)
  _ = write(1, bytes, bytes.count)
}

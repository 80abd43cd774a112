// SPDX-License-Identifier: Apache-2.0
//
// The program of tools/simulate: seeds FIRST, FIRST + STEP, ... up to LAST, of exports that
// compress after the word `compress`.

import Glibc

let words = CommandLine.arguments.dropFirst()
let numbers = words.compactMap { UInt64($0) }
guard numbers.count == 3 else {
  fatalError("Simulate [compress] FIRST LAST STEP")
}
let compresses = words.contains("compress")
var tally = SimulationTally()
var passed = 0
var failed = 0
for seed in stride(from: numbers[0], through: numbers[1], by: Int(numbers[2])) {
  announce(seed)
  do {
    tally += try Simulation.run(seed: seed, compresses: compresses)
    passed += 1
  } catch {
    failed += 1
    say("seed \(seed) (\(Simulation.describe(seed: seed))): \(error)")
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

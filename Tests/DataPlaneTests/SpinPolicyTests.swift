// SPDX-License-Identifier: Apache-2.0
//
// When the loop spins before it sleeps.

import Testing

@testable import DataPlane

@Suite struct `Spinning before a wait` {
  @Test func `never happens with a window of nothing`() {
    var policy = SpinPolicy(windowNanoseconds: 0)
    let spins = policy.shouldSpin()
    #expect(!spins)
  }

  @Test func `goes on while it finds events`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    for _ in 0..<100 {
      let spins = policy.shouldSpin()
      #expect(spins)
      policy.learn(found: true)
    }
  }

  @Test func `skips twice as many waits after each miss in a row, up to 1023`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    var skipped: [Int] = []
    for _ in 0..<12 {
      var count = 0
      while !policy.shouldSpin() { count += 1 }
      skipped.append(count)
      policy.learn(found: false)
    }
    #expect(skipped == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023])
  }

  @Test func `is as eager as ever after one event was found`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    policy.learn(found: false)
    var spins = [policy.shouldSpin(), policy.shouldSpin()]
    policy.learn(found: true)
    spins.append(policy.shouldSpin())
    #expect(spins == [false, true, true])
  }
}

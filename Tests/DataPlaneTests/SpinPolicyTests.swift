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
      policy.learn(found: true, gapNanoseconds: 500)
    }
  }

  @Test func `skips twice as many waits after each miss in a row, up to 1023`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    var skipped: [Int] = []
    for _ in 0..<12 {
      var count = 0
      while !policy.shouldSpin() { count += 1 }
      skipped.append(count)
      policy.learn(found: false, gapNanoseconds: 500)
    }
    #expect(skipped == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023, 1023])
  }

  @Test func `is as eager as ever after one event was found`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    policy.learn(found: false, gapNanoseconds: 500)
    var spins = [policy.shouldSpin(), policy.shouldSpin()]
    policy.learn(found: true, gapNanoseconds: 500)
    spins.append(policy.shouldSpin())
    #expect(spins == [false, true, true])
  }

  @Test func `takes an event that came while the core was somebody else's for a miss`() {
    var policy = SpinPolicy(windowNanoseconds: 50_000)
    policy.learn(found: true, gapNanoseconds: SpinPolicy.gapNanosecondsMax)
    let spins = policy.shouldSpin()
    #expect(!spins)
  }
}

@Suite struct `The only client` {
  @Test func `is looked at before a wait once it was seen to keep requests in flight`() {
    var lone = LoneClient()
    let before = lone.shouldLook()
    lone.watch(3)
    let after = lone.shouldLook()
    #expect(!before)
    #expect(after)
    #expect(lone.place == 3)
  }

  @Test func `gives way to the event loop after sixteen looks`() {
    var lone = LoneClient()
    lone.watch(0)
    let looks = (0..<34).map { _ in lone.shouldLook() }
    #expect(
      looks == Array(repeating: true, count: 16) + [false]
        + Array(repeating: true, count: 16) + [false])
  }

  @Test func `is not looked at again once it had nothing to say`() {
    var lone = LoneClient()
    lone.watch(0)
    lone.forget()
    let looks = lone.shouldLook()
    #expect(!looks)
  }
}

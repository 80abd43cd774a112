// SPDX-License-Identifier: Apache-2.0
//
// Whom the worker becomes, as a table.

import Sandbox
import Testing

@testable import Control

@Suite struct `The worker's user` {
  private let root = Identity(userID: 0, groupID: 0)
  private let alice = Identity(userID: 1_000, groupID: 1_000)
  private let nobody = Identity(userID: 65_534, groupID: 65_534)

  @Test func `is the fallback when root says nothing`() throws {
    #expect(
      try WorkerIdentity.choose(current: root, requested: nil, fallback: nobody) == nobody)
  }

  @Test func `is the one that root asks for`() throws {
    #expect(
      try WorkerIdentity.choose(current: root, requested: alice, fallback: nobody) == alice)
  }

  @Test func `is root only when root says so`() throws {
    #expect(try WorkerIdentity.choose(current: root, requested: root, fallback: nobody) == root)
  }

  @Test func `is never root for want of another`() {
    #expect(throws: ControlError.self) {
      try WorkerIdentity.choose(current: root, requested: nil, fallback: nil)
    }
  }

  @Test func `stays that of a normal user`() throws {
    #expect(try WorkerIdentity.choose(current: alice, requested: nil, fallback: nil) == nil)
    #expect(try WorkerIdentity.choose(current: alice, requested: alice, fallback: nil) == alice)
  }

  @Test func `cannot be another for a normal user`() {
    #expect(throws: ControlError.self) {
      try WorkerIdentity.choose(current: alice, requested: nobody, fallback: nil)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Messages between threads. Source: eventfd(2).

import DataPlane
import Glibc
import LinuxIO
import Testing

@Suite struct `A mailbox` {
  private func isReadable(_ descriptor: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 0) == 1
  }

  @Test func `is readable while messages wait, and gives them in order`() throws {
    let mailbox = try Mailbox<Int>()
    #expect(!isReadable(mailbox.eventDescriptor))
    #expect(mailbox.takeAll() == [])
    #expect(mailbox.post(1))
    #expect(mailbox.post(2))
    #expect(isReadable(mailbox.eventDescriptor))
    #expect(mailbox.takeAll() == [1, 2])
    #expect(!isReadable(mailbox.eventDescriptor))
  }

  @Test func `takes as many messages as it says and no more`() throws {
    let mailbox = try Mailbox<Int>()
    for number in 0..<mailbox.messagesMax { #expect(mailbox.post(number)) }
    #expect(!mailbox.post(-1))
    #expect(mailbox.takeAll().count == mailbox.messagesMax)
    #expect(mailbox.post(-1))
  }

  @Test func `loses nothing between threads`() throws {
    let mailbox = try Mailbox<Int>()
    let count = 20_000
    let thread = try OwnThread {
      var next = 0
      while next < count { if mailbox.post(next) { next += 1 } }
    }
    var expected = 0
    while expected < count {
      for message in mailbox.takeAll() {
        #expect(message == expected)
        expected = message + 1
      }
    }
    thread.join()
  }
}

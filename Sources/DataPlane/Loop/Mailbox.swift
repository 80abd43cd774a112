// SPDX-License-Identifier: Apache-2.0
//
// Messages from one thread to another that waits for descriptors. Source: eventfd(2).

import LinuxIO
import Synchronization

/// A bounded queue of messages with a descriptor that becomes readable when one has come.
///
/// Any thread posts; one thread takes. Neither ever waits for the other for longer than it takes
/// to append to an array.
public final class Mailbox<Message: Sendable>: Sendable {
  /// Messages that may wait.
  public let messagesMax: Int

  private let messages = Mutex<[Message]>([])
  private let arrival: EventCounter

  public init(messagesMax: Int = 64) throws(SystemError) {
    self.messagesMax = messagesMax
    arrival = try EventCounter(.polled)
  }

  /// Becomes readable when messages wait, and stays so until they are taken.
  public var eventDescriptor: Int32 { arrival.descriptor }

  /// Leaves a message; false when `messagesMax` wait already.
  public func post(_ message: Message) -> Bool {
    let isPosted = messages.withLock { messages in
      guard messages.count < messagesMax else { return false }
      messages.append(message)
      return true
    }
    if isPosted { arrival.signal() }
    return isPosted
  }

  /// Takes all messages, oldest first.
  public func takeAll() -> [Message] {
    arrival.take()
    return messages.withLock { messages in
      let taken = messages
      messages.removeAll(keepingCapacity: true)
      return taken
    }
  }
}

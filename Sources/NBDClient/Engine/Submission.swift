// SPDX-License-Identifier: Apache-2.0
//
// A request on its way from its maker to the thread of its connection. This file performs no I/O.

import NBDProtocol

/// What the maker of a request waits for.
typealias Outcome = Result<ServerAnswer.Outcome, NBDClientFault>

/// One request, whole, so that it can be sent again.
struct Submission: Sendable {
  /// The client's own name for it, for cancellation; cookies change when it is sent again.
  let ticket: UInt64
  let command: Command
  let flags: CommandFlags
  let offset: UInt64
  let length: UInt64
  /// The data of a WRITE.
  let payload: [UInt8]
  /// Called exactly once, by whoever takes the submission out of the engine or the mailbox.
  let reply: @Sendable (Outcome) -> Void
}

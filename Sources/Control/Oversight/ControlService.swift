// SPDX-License-Identifier: Apache-2.0
//
// The thread of the control socket, seen from outside.

import DataPlane
import LinuxIO

/// What the thread of the control socket is told by others.
enum ControlMessage: Sendable {
  /// The answer to the connection at `place` with this serial number.
  case answer(place: Int, serial: UInt64, ControlAnswer)
  case stop
}

/// The control socket while it is served. It must be stopped, which ends its thread.
struct ControlService: ~Copyable {
  private let thread: OwnThread
  private let inbox: Mailbox<ControlMessage>

  /// Starts the thread; before this the process may have had one.
  init(
    _ listener: ListeningSocket, _ desk: OversightDesk
  ) throws(SystemError) {
    let inbox = try Mailbox<ControlMessage>(messagesMax: ControlServer.inboxMax)
    let server = try ControlServer(listener, desk, inbox: inbox)
    thread = try OwnThread { server.run() }
    self.inbox = inbox
  }

  /// Closes all connections, answered or not, and returns when the thread has ended.
  consuming func stop() {
    let isPosted = inbox.post(.stop)
    precondition(isPosted, "the control socket's inbox has no room for the end")
    thread.join()
  }
}

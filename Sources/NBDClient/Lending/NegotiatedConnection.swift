// SPDX-License-Identifier: Apache-2.0
//
// A connection that is opened here and used by somebody else. This file performs socket I/O.

import LinuxIO
import NBDProtocol

/// An export that was entered and of which nothing was asked yet: the kernel, or another program,
/// makes the requests. It belongs to one thread.
public final class NegotiatedConnection {
  public let session: ClientSession
  let transport: any Transport

  private init(_ session: ClientSession, _ transport: any Transport) {
    self.session = session
    self.transport = transport
  }

  /// The socket of the server, for requests in clear; nil when they have to go through `Relay`.
  public var descriptor: Int32? { session.isEncrypted ? nil : transport.descriptor }

  /// Connects, negotiates and enters the export that `uri` names. Blocks the thread.
  ///
  /// - Parameter options: of which the contexts, the mode, the time to open and TLS count.
  public static func open(
    _ uri: NBDURI, _ options: ClientOptions
  ) throws(NBDClientFault) -> NegotiatedConnection {
    let mailbox: Mailbox
    do throws(SystemError) {
      mailbox = try Mailbox(requestsMax: options.requestsMax)
    } catch {
      throw .unsupported("\(error)")
    }
    let goal = ClientGoal(
      .enter(exportName: uri.exportName), contexts: options.contexts, modeMax: options.modeMax)
    let deadline =
      MonotonicClock.nanoseconds + UInt64(options.openSecondsMax) * 1_000_000_000
    guard
      case .session(let transport, let session, let rest) = try Opener(
        uri: uri, tls: options.tls, mailbox: mailbox
      ).open(goal, deadline: deadline)
    else { preconditionFailure("a list came where an export was to be entered") }
    // Nothing was asked yet, so any byte is an answer to nobody.
    guard rest.isEmpty else { throw .violated(.unknownCookie(0)) }
    return NegotiatedConnection(session, transport)
  }
}

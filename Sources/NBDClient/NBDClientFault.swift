// SPDX-License-Identifier: Apache-2.0
//
// Why a client cannot do what was asked, said so that a person can act on it.
// This file performs no I/O.

import NBDProtocol

/// A fault of a connection or of one request: sentences without the URI, which the caller adds.
public enum NBDClientFault: Error, Hashable, Sendable {
  /// What the address asks for is not built in.
  case unsupported(String)
  /// Nobody answers at the address.
  case unreachable(String)
  case timedOut(String)
  /// The server's words, or what it lacks.
  case refused(String)
  /// TLS is required and did not come about, or what the server proved itself with is not good.
  case insecure(String)
  /// The server broke the protocol; the connection was ended for good.
  case violated(ClientViolation)
  /// The request was not sent: it breaks a rule of the export.
  case request(RequestFault)
  /// The server answered with an error.
  case failed(Command, ServerFailure)
  /// The connection ended before the answer.
  case lost(String)
  /// Writes that the server had acknowledged before it was lost may be gone: told at the next
  /// flush, once.
  case writesLost(String)
  /// After reconnecting the export is another one.
  case exportChanged(String)
  case cancelled
  /// The client disconnected.
  case closed
  case tooManyRequests(max: Int)
}

extension NBDClientFault: CustomStringConvertible {
  public var description: String {
    switch self {
    case .unsupported(let what), .unreachable(let what), .timedOut(let what), .refused(let what),
      .insecure(let what), .lost(let what), .writesLost(let what), .exportChanged(let what):
      what
    case .violated(let violation): "protocol violation: \(violation)"
    case .request(let fault): fault.description
    case .failed(let command, let failure): "\(command) failed: \(failure)"
    case .cancelled: "the request was cancelled"
    case .closed: "the client has disconnected"
    case .tooManyRequests(let max): "more than \(max) requests are waiting"
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A client's connection to an NBD export: open, look, close. Requests are in
// `NBDConnection+Requests`. This file starts a thread for each connection.

import LinuxIO
import NBDProtocol

/// An open export. Any number of tasks may use it at once; it closes with its last reference.
///
/// One thread serves the connection. A task that is cancelled stops waiting at once; what it had
/// sent may still be done.
public final class NBDConnection: Sendable {
  public let uri: NBDURI
  /// What was agreed on when the connection was opened; after reconnecting at least this holds.
  public let session: ClientSession
  let mailbox: Mailbox
  let rules: ClientRules

  private init(_ uri: NBDURI, _ session: ClientSession, _ mailbox: Mailbox) {
    self.uri = uri
    self.session = session
    self.mailbox = mailbox
    rules = ClientRules(session)
  }

  deinit { mailbox.close() }

  /// Size of the export in bytes, below 2^63.
  public var byteCount: UInt64 { session.byteCount }
  public var export: ExportDetails { session.export }

  /// Connects, negotiates and enters the export that `uri` names.
  public static func connect(
    _ uri: NBDURI, _ options: ClientOptions = ClientOptions()
  ) async throws(NBDClientFault) -> NBDConnection {
    let mailbox = try makeMailbox(options)
    let result = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        startThread(reporting: continuation) {
          Engine(uri, options, mailbox).run(opened: continuation)
        }
      }
    } onCancel: {
      mailbox.close()
    }
    return NBDConnection(uri, try result.get(), mailbox)
  }

  /// Asks a server for its exports and all that it tells about each. The URI's name is ignored.
  public static func list(
    _ uri: NBDURI, _ options: ClientOptions = ClientOptions()
  ) async throws(NBDClientFault) -> Listing {
    let mailbox = try makeMailbox(options)
    let goal = ClientGoal(.list, modeMax: options.modeMax)
    let deadline =
      MonotonicClock.nanoseconds + UInt64(options.openSecondsMax) * 1_000_000_000
    let result: Result<Listing, NBDClientFault> = await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        startThread(reporting: continuation) {
          continuation.resume(returning: ask(uri, options.tls, mailbox, goal, deadline))
        }
      }
    } onCancel: {
      mailbox.close()
    }
    return try result.get()
  }

  /// Answers what is in flight, says goodbye, and waits for the end of the connection.
  ///
  /// - Throws: what no flush has told of: acknowledged writes that were lost.
  public func disconnect() async throws(NBDClientFault) {
    if let fault = await mailbox.closeAndWait() { throw fault }
  }

  /// What a server told about all its exports.
  public struct Listing: Sendable {
    public let exports: [ExportDetails]
    public let mode: ProtocolMode
    public let isEncrypted: Bool
  }

  private static func ask(
    _ uri: NBDURI, _ tls: ClientTLS, _ mailbox: Mailbox, _ goal: ClientGoal, _ deadline: UInt64
  ) -> Result<Listing, NBDClientFault> {
    do throws(NBDClientFault) {
      guard
        case .list(let listing) = try Opener(uri: uri, tls: tls, mailbox: mailbox).open(
          goal, deadline: deadline)
      else { preconditionFailure("an export was entered where a list was asked for") }
      return .success(listing)
    } catch {
      return .failure(error)
    }
  }

  private static func makeMailbox(_ options: ClientOptions) throws(NBDClientFault) -> Mailbox {
    if case .named(let names) = options.contexts {
      guard names.count <= ClientHandshake.contextsMax,
        names.allSatisfy(ExportName.isContextName)
      else {
        throw .unsupported("the names of contexts are too many, empty, too long or hold NUL")
      }
    }
    do throws(SystemError) {
      return try Mailbox(requestsMax: options.requestsMax)
    } catch {
      throw .unsupported("\(error)")
    }
  }

  /// Starts a thread that owns `body`; a machine without threads is told about, not trapped on.
  private static func startThread<Value>(
    reporting continuation: CheckedContinuation<Result<Value, NBDClientFault>, Never>,
    _ body: @escaping @Sendable () -> Void
  ) {
    do throws(SystemError) {
      try OwnThread(body).detach()
    } catch {
      continuation.resume(returning: .failure(.unsupported("\(error)")))
    }
  }
}

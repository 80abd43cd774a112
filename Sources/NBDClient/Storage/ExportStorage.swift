// SPDX-License-Identifier: Apache-2.0
//
// An NBD export as the storage of a layer. It is opened on the thread of the caller, in a process
// that has one thread and may still resolve names and open files; later connections need
// connect(2) alone. This file starts a thread when it is told to.

import BlockTypes
import LinuxIO
import NBDProtocol
import Synchronization

/// An open export. It closes with its last reference.
public final class ExportStorage: RemoteStorage {
  public let uri: NBDURI
  /// What was agreed on; after reconnecting at least this holds.
  public let session: ClientSession
  let access: ImageFile.Access
  let mailbox: Mailbox
  let rules: ClientRules
  /// Where `base:allocation` stands among the contexts; nil when the server does not tell.
  let allocationIndex: Int?
  /// The connection, as long as no thread of its own runs it.
  private let idle: Mutex<Engine?>
  let checkpoint = Mutex(Checkpoint())

  /// Connects, negotiates and enters the export that `uri` names.
  ///
  /// - Parameters:
  ///   - secondsMax: how long requests wait for a server that is gone, or that answers nothing at
  ///     all. They fail afterwards, and the server is tried on.
  ///   - access: with `.readOnly` nothing is ever written.
  public static func open(
    _ uri: NBDURI, access: ImageFile.Access, secondsMax: Int
  ) throws(NBDClientFault) -> ExportStorage {
    var reconnect = ClientOptions.Reconnect(
      secondsMax: secondsMax, delayMillisecondsMax: 2_000,
      replayByteCountMax: 2 * Checkpoint.byteCountMax + ClientRules.payloadsInFlightByteCountMax)
    reconnect.isEndless = true
    let options = ClientOptions(
      contexts: .named(["base:allocation"]), openSecondsMax: min(secondsMax, 10),
      replySecondsMax: secondsMax, reconnect: reconnect)
    let mailbox: Mailbox
    do throws(SystemError) {
      mailbox = try Mailbox(requestsMax: options.requestsMax)
    } catch {
      throw .unsupported("\(error)")
    }
    let engine = Engine(uri, options, mailbox)
    try engine.opener.prepare()
    try engine.open()
    guard let session = engine.session else {
      preconditionFailure("a connection was opened without a session")
    }
    try requireUsable(session, access)
    return ExportStorage(uri, session, access, mailbox, engine)
  }

  private static func requireUsable(
    _ session: ClientSession, _ access: ImageFile.Access
  ) throws(NBDClientFault) {
    guard access == .readOnly || !session.export.flags.contains(.readOnly) else {
      throw .refused("the export is read-only")
    }
    let block = UInt64(session.export.minimumBlockByteCount)
    guard session.byteCount.isAligned(to: block) else {
      throw .refused(
        "the export's \(session.byteCount) bytes are not a multiple of its block size \(block)")
    }
  }

  private init(
    _ uri: NBDURI, _ session: ClientSession, _ access: ImageFile.Access, _ mailbox: Mailbox,
    _ engine: sending Engine
  ) {
    self.uri = uri
    self.session = session
    self.access = access
    self.mailbox = mailbox
    rules = ClientRules(session)
    allocationIndex = session.export.contexts.firstIndex(of: "base:allocation")
    idle = Mutex(engine)
  }

  deinit { mailbox.close() }

  public var identity: String { uri.description }
  public var byteCount: UInt64 { session.byteCount }
  public var isGrowable: Bool { false }
  public var blockByteCount: UInt64 { UInt64(session.export.minimumBlockByteCount) }
  public var tellsStatus: Bool { allocationIndex != nil }

  public func begin() throws(SystemError) {
    guard let engine = idle.withLock({ $0.take() }) else { return }
    try OwnThread { engine.run { false } }.detach()
  }

  /// Reads can be done without. A server that has our writes to flush is waited for as a disk is.
  public func hurry() {
    if access == .readOnly { mailbox.hurry() }
  }

  /// Answers what is in flight, says goodbye and waits for the end of the connection, up to
  /// `milliseconds`.
  public func close(milliseconds: Int32) throws(SystemError) {
    let end = try Outcomes<NBDClientFault?>()
    mailbox.close { end.put($0) }
    if !runHere(until: { end.isThere }) { end.wait(milliseconds: milliseconds) }
  }

  /// Waits for `isEnough` by doing the connection's work; false when a thread of its own does that.
  func runHere(until isEnough: @Sendable () -> Bool) -> Bool {
    idle.withLock { engine in
      guard let engine else { return false }
      engine.run(until: isEnough)
      return true
    }
  }
}

/// One value on its way to the thread that waits for it.
final class Outcomes<Value: Sendable>: Sendable {
  private let value = Mutex<Value?>(nil)
  private let bell: EventCounter

  init() throws(SystemError) { bell = try EventCounter(.semaphore) }

  var isThere: Bool { value.withLock { $0 != nil } }

  func put(_ new: Value) {
    value.withLock { $0 = new }
    bell.signal()
  }

  /// Waits up to `milliseconds`; -1: for ever.
  func wait(milliseconds: Int32 = -1) {
    ByteSocket.wait(
      socket: -1, forOutput: false, bell: bell.descriptor, milliseconds: milliseconds)
  }

  func take() -> Value? { value.withLock { $0 } }
}

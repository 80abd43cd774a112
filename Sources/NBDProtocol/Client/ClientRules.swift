// SPDX-License-Identifier: Apache-2.0
//
// What a client may ask of an export. Spec: proto.md, "Transmission flags", "Command flags",
// "Size constraints". This file performs no I/O.

import BlockTypes

/// A request that must not be sent: one sentence.
public struct RequestFault: Error, Hashable, Sendable, CustomStringConvertible {
  public let description: String

  init(_ description: String) { self.description = description }

  public static let pastTheEnd = RequestFault("the range passes the end of the export")
}

/// The rules that a client keeps, so that a server never has to refuse by them.
public struct ClientRules: Hashable, Sendable {
  private let session: ClientSession

  public init(_ session: ClientSession) { self.session = session }

  /// Longest effect of one request that moves no data: what the header can say, in whole blocks.
  public var effectByteCountMax: UInt64 {
    if session.mode == .extended { return UInt64(Int64.max) }
    return UInt64(UInt32.max).alignedDown(to: UInt64(session.export.minimumBlockByteCount))
  }

  /// Throws unless the request may be sent.
  public func check(
    _ command: Command, _ flags: CommandFlags, _ offset: UInt64, _ length: UInt64
  ) throws(RequestFault) {
    let export = session.export.flags
    switch command {
    case .disconnect, .resize: throw RequestFault("\(command) is not for callers")
    case .flush: return
    case .read: break
    case .write, .trim, .writeZeroes:
      guard !export.contains(.readOnly) else { throw RequestFault("the export is read-only") }
    case .cache:
      guard export.contains(.sendCache) else { throw RequestFault("the export has no cache") }
    case .blockStatus:
      guard !session.contextIDs.isEmpty else {
        throw RequestFault("no meta context was agreed on")
      }
    }
    if command == .trim, !export.contains(.sendTrim) {
      throw RequestFault("the export has no trim")
    }
    if command == .writeZeroes, !export.contains(.sendWriteZeroes) {
      throw RequestFault("the export has no write zeroes")
    }
    try checkFlags(flags)
    try checkRange(command, offset, length)
  }

  private func checkFlags(_ flags: CommandFlags) throws(RequestFault) {
    let export = session.export.flags
    if flags.contains(.fua), !export.contains(.sendFUA) {
      throw RequestFault("the export has no FUA")
    }
    if flags.contains(.fastZero), !export.contains(.sendFastZero) {
      throw RequestFault("the export has no fast zero")
    }
    if flags.contains(.dontFragment), !export.contains(.sendDF) {
      throw RequestFault("the export has no DF")
    }
  }

  private func checkRange(
    _ command: Command, _ offset: UInt64, _ length: UInt64
  ) throws(RequestFault) {
    guard length > 0 else { throw RequestFault("the request is for no bytes") }
    guard offset <= session.byteCount, length <= session.byteCount - offset else {
      throw RequestFault(
        "\(length) bytes at \(offset) pass the export's end at \(session.byteCount)")
    }
    let block = UInt64(session.export.minimumBlockByteCount)
    guard offset.isAligned(to: block), length.isAligned(to: block) else {
      throw RequestFault(
        "\(length) bytes at \(offset) are not whole blocks of \(block) bytes")
    }
    let carriesData = command == .read || command == .write
    let lengthMax =
      carriesData ? UInt64(session.export.payloadByteCountMax) : effectByteCountMax
    guard length <= lengthMax else {
      throw RequestFault("\(length) bytes are more than the \(lengthMax) of one request")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What may be asked over the control socket: one JSON object a line.
// Source: stratad(8), "CONTROL SOCKET". This file performs no I/O.

import Bitmaps
import ImageTools

/// Why a line is no request, as a sentence for its sender.
public struct RequestFault: Error, Hashable, Sendable {
  public let reason: String
}

/// A question or an order.
public enum ControlRequest: Hashable, Sendable {
  /// What one export has done; nil: the only one.
  case status(export: String?)
  case exports
  case clients
  case kick(client: UInt64)
  case bitmaps(export: String?)
  case changeBitmap(BitmapAction, export: String?)
  /// All of it at one moment, or nothing.
  case transaction([BitmapAction], export: String?)
  case resize(byteCount: UInt64, export: String?)
  case snapshots(export: String?)
  case changeSnapshot(SnapshotAction, export: String?)
  /// Reads certificates, keys and lists of names again.
  case reload

  /// Reads a line without its line feed. Members that the request does not have are faults, so that
  /// a slip is noticed.
  public init(parsing line: [UInt8]) throws(RequestFault) {
    let value: JSONValue
    do throws(JSONFault) {
      value = try JSONReader.read(line)
    } catch {
      throw RequestFault(reason: "the line is no JSON: \(error.reason), at byte \(error.offset)")
    }
    guard case .object(let members) = value else {
      throw RequestFault(reason: "the line is no object such as {\"ask\":\"status\"}")
    }
    var request = try RequestMembers(members)
    switch request.name {
    case "status": self = .status(export: try request.exportName())
    case "exports": self = .exports
    case "reload": self = .reload
    case "clients": self = .clients
    case "kick":
      self = .kick(client: UInt64(try request.number("client", "client's number")))
    case "bitmaps": self = .bitmaps(export: try request.exportName())
    case "resize":
      self = .resize(
        byteCount: UInt64(try request.number("bytes", "number of bytes")),
        export: try request.exportName())
    case "transaction":
      self = .transaction(
        try ControlRequest.actions(try request.array("actions", "list")),
        export: try request.exportName())
    case "snapshots": self = .snapshots(export: try request.exportName())
    default:
      if let action = try SnapshotAction(parsing: &request) {
        self = .changeSnapshot(action, export: try request.exportName())
      } else if let action = try BitmapAction(parsing: &request) {
        self = .changeBitmap(action, export: try request.exportName())
      } else {
        throw RequestFault(
          reason: "\(RequestMembers.shortened(request.name)) cannot be asked;"
            + " stratad(8) lists what can")
      }
    }
    try request.requireNoMore()
  }

  /// Each one is an object as a line of its own would have it.
  private static func actions(
    _ values: [JSONValue]
  ) throws(RequestFault) -> [BitmapAction] {
    guard (1...BitmapSet.actionsMax).contains(values.count) else {
      throw RequestFault(reason: "a transaction has 1...\(BitmapSet.actionsMax) actions")
    }
    var actions: [BitmapAction] = []
    for value in values {
      guard case .object(let members) = value else {
        throw RequestFault(reason: "an action is no object")
      }
      var request = try RequestMembers(members)
      guard let action = try BitmapAction(parsing: &request) else {
        throw RequestFault(
          reason: "\(RequestMembers.shortened(request.name)) is no action of a transaction;"
            + " those that begin with bitmap- are")
      }
      try request.requireNoMore()
      actions.append(action)
    }
    return actions
  }

  /// Time that the answer may take, in seconds.
  var answerSecondsMax: Int {
    switch self {
    // All tables of the disk are read and their counts written.
    case .changeSnapshot: 3_600
    case .status, .exports, .clients, .kick, .bitmaps, .changeBitmap, .transaction, .resize,
      .snapshots, .reload:
      10
    }
  }

  /// The line that asks this, without a line feed.
  public var line: String {
    var json = JSONWriter(layout: .oneLine)
    json.beginObject()
    switch self {
    case .status(let export):
      json.field("ask", "status")
      if let export { json.field("export", export) }
    case .exports: json.field("ask", "exports")
    case .reload: json.field("ask", "reload")
    case .clients: json.field("ask", "clients")
    case .kick(let client):
      json.field("ask", "kick")
      json.field("client", client)
    case .bitmaps(let export):
      json.field("ask", "bitmaps")
      if let export { json.field("export", export) }
    case .resize(let byteCount, let export):
      json.field("ask", "resize")
      json.field("bytes", byteCount)
      if let export { json.field("export", export) }
    case .snapshots(let export):
      json.field("ask", "snapshots")
      if let export { json.field("export", export) }
    case .changeSnapshot(let action, let export):
      action.write(to: &json)
      if let export { json.field("export", export) }
    case .changeBitmap(let action, let export):
      action.write(to: &json)
      if let export { json.field("export", export) }
    case .transaction(let actions, let export):
      json.field("ask", "transaction")
      json.beginArray("actions")
      for action in actions {
        json.beginObject()
        action.write(to: &json)
        json.end()
      }
      json.end()
      if let export { json.field("export", export) }
    }
    json.end()
    return json.finish()
  }
}

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
  case status
  case clients
  case kick(client: UInt64)
  case bitmaps
  case changeBitmap(BitmapAction)
  /// All of it at one moment, or nothing.
  case transaction([BitmapAction])
  case resize(byteCount: UInt64)

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
    case "status": self = .status
    case "clients": self = .clients
    case "kick":
      self = .kick(client: UInt64(try request.number("client", "client's number")))
    case "bitmaps": self = .bitmaps
    case "resize":
      self = .resize(byteCount: UInt64(try request.number("bytes", "number of bytes")))
    case "transaction":
      self = .transaction(try ControlRequest.actions(try request.array("actions", "list")))
    default:
      guard let action = try BitmapAction(parsing: &request) else {
        throw RequestFault(
          reason: "\(RequestMembers.shortened(request.name)) cannot be asked;"
            + " stratad(8) lists what can")
      }
      self = .changeBitmap(action)
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

  /// The line that asks this, without a line feed.
  public var line: String {
    var json = JSONWriter(layout: .oneLine)
    json.beginObject()
    switch self {
    case .status: json.field("ask", "status")
    case .clients: json.field("ask", "clients")
    case .kick(let client):
      json.field("ask", "kick")
      json.field("client", client)
    case .bitmaps: json.field("ask", "bitmaps")
    case .resize(let byteCount):
      json.field("ask", "resize")
      json.field("bytes", byteCount)
    case .changeBitmap(let action): action.write(to: &json)
    case .transaction(let actions):
      json.field("ask", "transaction")
      json.beginArray("actions")
      for action in actions {
        json.beginObject()
        action.write(to: &json)
        json.end()
      }
      json.end()
    }
    json.end()
    return json.finish()
  }
}

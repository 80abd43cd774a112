// SPDX-License-Identifier: Apache-2.0
//
// What may be asked over the control socket: one JSON object a line.
// Source: stratad(8), "CONTROL SOCKET". This file performs no I/O.

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
    guard let ask = members["ask"] else { throw RequestFault(reason: "there is no \"ask\"") }
    guard case .string(let name) = ask else {
      throw RequestFault(reason: "the value of \"ask\" is no string")
    }
    let allowed: Set<String>
    switch name {
    case "status":
      self = .status(export: try ControlRequest.exportName(members["export"]))
      allowed = ["ask", "export"]
    case "exports":
      self = .exports
      allowed = ["ask"]
    case "reload":
      self = .reload
      allowed = ["ask"]
    case "clients":
      self = .clients
      allowed = ["ask"]
    case "kick":
      self = .kick(client: try ControlRequest.clientNumber(members["client"]))
      allowed = ["ask", "client"]
    default:
      throw RequestFault(
        reason: "\(ControlRequest.shortened(name)) cannot be asked;"
          + " status, exports, clients, kick and reload can")
    }
    if let other = members.keys.sorted().first(where: { !allowed.contains($0) }) {
      throw RequestFault(reason: "\(name) has no member \(ControlRequest.shortened(other))")
    }
  }

  /// The line that asks this, without a line feed.
  public var line: String {
    switch self {
    case .status(nil): #"{"ask":"status"}"#
    case .status(let name?): #"{"ask":"status","export":\#(JSONWriter.quote(name))}"#
    case .exports: #"{"ask":"exports"}"#
    case .reload: #"{"ask":"reload"}"#
    case .clients: #"{"ask":"clients"}"#
    case .kick(let client): #"{"ask":"kick","client":\#(client)}"#
    }
  }

  private static func exportName(_ value: JSONValue?) throws(RequestFault) -> String? {
    guard let value else { return nil }
    guard let name = value.text else {
      throw RequestFault(reason: "the value of \"export\" is no string")
    }
    return name
  }

  private static func clientNumber(_ value: JSONValue?) throws(RequestFault) -> UInt64 {
    guard let value else { throw RequestFault(reason: "kick needs \"client\", a client's number") }
    guard let number = value.integer, number >= 0 else {
      throw RequestFault(reason: "the value of \"client\" is no client's number")
    }
    return UInt64(number)
  }

  /// Names of a stranger's choice do not fill our answers.
  static func shortened(_ name: String) -> String {
    let lengthMax = 40
    return JSONWriter.quote(name.count > lengthMax ? "\(name.prefix(lengthMax))…" : name)
  }
}

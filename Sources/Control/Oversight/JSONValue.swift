// SPDX-License-Identifier: Apache-2.0
//
// A JSON document as a value. Source: RFC 8259. This file performs no I/O.

/// What a JSON text says. Of numbers there are only whole ones that fit in 64 bits with a sign.
public enum JSONValue: Hashable, Sendable {
  case object([String: JSONValue])
  case array([JSONValue])
  case string(String)
  case integer(Int64)
  case bool(Bool)
  case null

  /// The member of an object; nil when there is none, or this is no object.
  public subscript(key: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members[key]
  }

  public var elements: [JSONValue]? {
    guard case .array(let elements) = self else { return nil }
    return elements
  }

  public var text: String? {
    guard case .string(let text) = self else { return nil }
    return text
  }

  public var integer: Int64? {
    guard case .integer(let value) = self else { return nil }
    return value
  }

  public var bool: Bool? {
    guard case .bool(let value) = self else { return nil }
    return value
  }
}

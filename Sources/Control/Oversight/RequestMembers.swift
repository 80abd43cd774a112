// SPDX-License-Identifier: Apache-2.0
//
// The members of a request, taken one by one. This file performs no I/O.

import ImageTools

/// An object with an "ask", and what of it nobody has taken yet.
struct RequestMembers {
  let name: String
  private var rest: [String: JSONValue]

  init(_ members: [String: JSONValue]) throws(RequestFault) {
    guard let ask = members["ask"] else { throw RequestFault(reason: "there is no \"ask\"") }
    guard case .string(let name) = ask else {
      throw RequestFault(reason: "the value of \"ask\" is no string")
    }
    self.name = name
    rest = members
    rest["ask"] = nil
  }

  /// A number from 0 on. The noun says what it is: "client's number".
  mutating func number(_ key: String, _ noun: String) throws(RequestFault) -> Int64 {
    guard let number = try required(key, noun).integer, number >= 0 else {
      throw RequestMembers.wrong(key, noun)
    }
    return number
  }

  mutating func number(
    _ key: String, _ noun: String, ifMissing missing: Int64
  ) throws(RequestFault) -> Int64 {
    rest[key] == nil ? missing : try number(key, noun)
  }

  mutating func text(_ key: String, _ noun: String) throws(RequestFault) -> String {
    guard let text = try required(key, noun).text else { throw RequestMembers.wrong(key, noun) }
    return text
  }

  mutating func array(_ key: String, _ noun: String) throws(RequestFault) -> [JSONValue] {
    guard let elements = try required(key, noun).elements else {
      throw RequestMembers.wrong(key, noun)
    }
    return elements
  }

  mutating func texts(_ key: String, _ noun: String) throws(RequestFault) -> [String] {
    var texts: [String] = []
    for element in try array(key, noun) {
      guard let text = element.text else { throw RequestMembers.wrong(key, noun) }
      texts.append(text)
    }
    return texts
  }

  /// A truth value that is false when it is missing.
  mutating func flag(_ key: String) throws(RequestFault) -> Bool {
    guard let value = rest.removeValue(forKey: key) else { return false }
    guard let flag = value.bool else { throw RequestMembers.wrong(key, "truth value") }
    return flag
  }

  /// The export that is meant; nil: the only one.
  mutating func exportName() throws(RequestFault) -> String? {
    guard let value = rest.removeValue(forKey: "export") else { return nil }
    guard let name = value.text else { throw RequestMembers.wrong("export", "string") }
    return name
  }

  func requireNoMore() throws(RequestFault) {
    guard let other = rest.keys.sorted().first else { return }
    throw RequestFault(reason: "\(name) has no member \(RequestMembers.shortened(other))")
  }

  private mutating func required(
    _ key: String, _ noun: String
  ) throws(RequestFault) -> JSONValue {
    guard let value = rest.removeValue(forKey: key) else {
      throw RequestFault(reason: "\(name) needs \"\(key)\", a \(noun)")
    }
    return value
  }

  static func wrong(_ key: String, _ noun: String) -> RequestFault {
    RequestFault(reason: "the value of \"\(key)\" is no \(noun)")
  }

  /// Names of a stranger's choice do not fill our answers.
  static func shortened(_ name: String) -> String {
    let lengthMax = 40
    return JSONWriter.quote(name.count > lengthMax ? "\(name.prefix(lengthMax))…" : name)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// JSON texts as they come over the control socket, read strictly. Source: RFC 8259.
// This file performs no I/O.

/// Why a text is not JSON that we take.
public struct JSONFault: Error, Hashable, Sendable {
  public let reason: String
  /// Bytes of the text before the fault.
  public let offset: Int
}

/// Reads one JSON text. A name twice in an object, a number that is not whole or does not fit in 64
/// bits, and more than `depthMax` levels are faults, besides what RFC 8259 forbids.
public struct JSONReader {
  /// Objects and arrays inside each other.
  public static let depthMax = 8

  /// An object or array whose end has not come yet.
  private struct Container {
    let isObject: Bool
    var members: [String: JSONValue] = [:]
    var elements: [JSONValue] = []
    /// The name whose value comes next.
    var key = ""
  }

  private let bytes: [UInt8]
  private var position = 0
  private var open: [Container] = []

  private init(_ bytes: [UInt8]) { self.bytes = bytes }

  /// The value that all of `bytes` mean.
  public static func read(_ bytes: [UInt8]) throws(JSONFault) -> JSONValue {
    guard String(validating: bytes, as: UTF8.self) != nil else {
      throw JSONFault(reason: "it is not UTF-8", offset: 0)
    }
    var reader = JSONReader(bytes)
    return try reader.document()
  }

  private mutating func document() throws(JSONFault) -> JSONValue {
    while true {
      guard var value = try startOfValue() else { continue }
      while let place = open.indices.last {
        guard let whole = try add(value, to: place) else { break }
        value = whole
      }
      guard open.isEmpty else { continue }
      skipBlanks()
      guard position == bytes.count else { throw fault("something follows its end") }
      return value
    }
  }

  /// A value that is whole, or nil when an object or array was begun.
  private mutating func startOfValue() throws(JSONFault) -> JSONValue? {
    skipBlanks()
    guard let first = peek() else { throw fault("it ends where a value should be") }
    switch first {
    case UInt8(ascii: "{"): return try begin(isObject: true, UInt8(ascii: "}"), .object([:]))
    case UInt8(ascii: "["): return try begin(isObject: false, UInt8(ascii: "]"), .array([]))
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    default: throw fault("no value starts like this")
    }
  }

  private mutating func begin(
    isObject: Bool, _ closing: UInt8, _ empty: JSONValue
  ) throws(JSONFault) -> JSONValue? {
    position += 1
    skipBlanks()
    if take(closing) { return empty }
    guard open.count < JSONReader.depthMax else {
      throw fault("more than \(JSONReader.depthMax) objects and arrays lie in each other")
    }
    var container = Container(isObject: isObject)
    if isObject { container.key = try key() }
    open.append(container)
    return nil
  }

  /// Adds a value to the innermost container. Returns that when it is whole now, and nil when
  /// another value follows.
  private mutating func add(
    _ value: JSONValue, to place: Int
  ) throws(JSONFault) -> JSONValue? {
    let isObject = open[place].isObject
    if isObject {
      let key = open[place].key
      guard open[place].members.updateValue(value, forKey: key) == nil else {
        throw fault("an object has the same name twice")
      }
    } else {
      open[place].elements.append(value)
    }
    skipBlanks()
    if take(UInt8(ascii: ",")) {
      if isObject {
        skipBlanks()
        open[place].key = try key()
      }
      return nil
    }
    guard take(UInt8(ascii: isObject ? "}" : "]")) else {
      throw fault(isObject ? "an object does not end" : "an array does not end")
    }
    let whole = open.removeLast()
    return isObject ? .object(whole.members) : .array(whole.elements)
  }

  /// A name with its colon.
  private mutating func key() throws(JSONFault) -> String {
    guard peek() == UInt8(ascii: "\"") else { throw fault("a name in quotes is missing") }
    let key = try string()
    skipBlanks()
    guard take(UInt8(ascii: ":")) else { throw fault("a name has no colon") }
    return key
  }

  // MARK: Leaves

  private mutating func word(_ text: StaticString, _ value: JSONValue) throws(JSONFault)
    -> JSONValue
  {
    for byte in "\(text)".utf8 {
      guard take(byte) else { throw fault("no value starts like this") }
    }
    return value
  }

  private mutating func number() throws(JSONFault) -> JSONValue {
    let start = position
    _ = take(UInt8(ascii: "-"))
    let digits = position
    while let byte = peek(), isDigit(byte) { position += 1 }
    guard position > digits, bytes[digits] != UInt8(ascii: "0") || position == digits + 1 else {
      throw fault("a number is not written as JSON writes it")
    }
    if let byte = peek(), [UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E")].contains(byte) {
      throw fault("a number is not whole")
    }
    guard let value = Int64(String(decoding: bytes[start..<position], as: UTF8.self)) else {
      throw fault("a number does not fit in 64 bits")
    }
    return .integer(value)
  }

  private mutating func string() throws(JSONFault) -> String {
    position += 1
    var text: [UInt8] = []
    while let byte = peek() {
      position += 1
      switch byte {
      case UInt8(ascii: "\""): return String(decoding: text, as: UTF8.self)
      case UInt8(ascii: "\\"): text += try escaped()
      case 0..<0x20: throw fault("a string has a control character")
      default: text.append(byte)
      }
    }
    throw fault("a string does not end")
  }

  /// The UTF-8 of what follows a backslash.
  private mutating func escaped() throws(JSONFault) -> [UInt8] {
    guard let byte = peek() else { throw fault("a string does not end") }
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
    case UInt8(ascii: "b"): return [0x08]
    case UInt8(ascii: "f"): return [0x0c]
    case UInt8(ascii: "n"): return [0x0a]
    case UInt8(ascii: "r"): return [0x0d]
    case UInt8(ascii: "t"): return [0x09]
    case UInt8(ascii: "u"): return Array(String(try scalar()).utf8)
    default: throw fault("a string has an escape that JSON does not know")
    }
  }

  /// A character by its number, which may be written as a pair of surrogates.
  private mutating func scalar() throws(JSONFault) -> Character {
    let first = try hexadecimal()
    if let scalar = Unicode.Scalar(first) { return Character(scalar) }
    guard first < 0xdc00, take(UInt8(ascii: "\\")), take(UInt8(ascii: "u")) else {
      throw fault("a string has half a character")
    }
    let second = try hexadecimal()
    guard 0xdc00..<0xe000 ~= second,
      let scalar = Unicode.Scalar(0x10000 + (first - 0xd800) << 10 + (second - 0xdc00))
    else { throw fault("a string has half a character") }
    return Character(scalar)
  }

  private mutating func hexadecimal() throws(JSONFault) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      guard let byte = peek(), let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
        throw fault("a string has an escape that JSON does not know")
      }
      position += 1
      value = value << 4 | UInt32(digit)
    }
    return value
  }

  // MARK: Bytes

  private func peek() -> UInt8? { position < bytes.count ? bytes[position] : nil }

  private mutating func take(_ byte: UInt8) -> Bool {
    guard peek() == byte else { return false }
    position += 1
    return true
  }

  private mutating func skipBlanks() {
    while let byte = peek(), [0x20, 0x09, 0x0a, 0x0d].contains(byte) { position += 1 }
  }

  private func isDigit(_ byte: UInt8) -> Bool { UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte }

  private func fault(_ reason: String) -> JSONFault { JSONFault(reason: reason, offset: position) }
}

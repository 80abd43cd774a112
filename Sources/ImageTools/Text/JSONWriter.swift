// SPDX-License-Identifier: Apache-2.0
//
// JSON text, written from front to back. Source: RFC 8259.
// This file performs no I/O.

/// Builds one JSON document. Calls must nest properly, which is our own affair and is asserted.
public struct JSONWriter {
  public enum Layout: Sendable {
    /// A line for each element, as qemu-img indents them.
    case indented
    /// No line feed and no blank anywhere.
    case oneLine
  }

  private let layout: Layout
  private var text = ""
  /// For each open object or array: its closing character, and whether it has an element.
  private var open: [(close: Character, hasElement: Bool)] = []

  public init(layout: Layout = .indented) { self.layout = layout }

  /// The document; everything that was begun must be ended.
  public consuming func finish() -> String {
    precondition(open.isEmpty, "a JSON object or array was not ended")
    return text
  }

  public mutating func beginObject(_ key: String? = nil) { begin("{", "}", key) }
  public mutating func beginArray(_ key: String? = nil) { begin("[", "]", key) }

  /// Ends the innermost object or array.
  public mutating func end() {
    precondition(!open.isEmpty, "there is no JSON object or array to end")
    let last = open.removeLast()
    newLine()
    text.append(last.close)
  }

  public mutating func field(_ key: String? = nil, _ value: String) {
    element(key)
    text += Self.quote(value)
  }

  public mutating func field(_ key: String? = nil, _ value: some BinaryInteger) {
    element(key)
    text += "\(value)"
  }

  public mutating func field(_ key: String? = nil, _ value: Bool) {
    element(key)
    text += value ? "true" : "false"
  }

  private mutating func begin(_ opening: Character, _ close: Character, _ key: String?) {
    element(key)
    text.append(opening)
    open.append((close, false))
  }

  private mutating func element(_ key: String?) {
    if let index = open.indices.last {
      if open[index].hasElement { text += "," }
      open[index].hasElement = true
      newLine()
    }
    if let key { text += Self.quote(key) + (layout == .indented ? ": " : ":") }
  }

  private mutating func newLine() {
    guard layout == .indented else { return }
    text += "\n" + String(repeating: " ", count: 4 * open.count)
  }

  /// The string with quotes and escapes.
  public static func quote(_ value: String) -> String {
    var quoted = "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": quoted += "\\\""
      case "\\": quoted += "\\\\"
      case "\n": quoted += "\\n"
      case "\r": quoted += "\\r"
      case "\t": quoted += "\\t"
      case "\u{0}"..<" ", "\u{7f}":
        let digits = String(scalar.value, radix: 16)
        quoted += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: quoted.unicodeScalars.append(scalar)
      }
    }
    return quoted + "\""
  }
}

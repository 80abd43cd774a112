// SPDX-License-Identifier: Apache-2.0
//
// Names that a client sends: their limits, and how they are shown to people.
// Spec: proto.md, "String values". This file performs no I/O.

/// Rules for strings of the protocol.
public enum ExportName {
  /// Longest string in bytes.
  public static var byteCountMax: Int { 4096 }
  /// Characters of a client's string that an error text repeats.
  static var shownCharactersMax: Int { 80 }

  /// Whether `bytes` are a string by the protocol: short enough, UTF-8, and without NUL.
  static func isWellFormed(_ bytes: some Collection<UInt8>) -> Bool {
    bytes.count <= byteCountMax && !bytes.contains(0)
      && String(validating: bytes, as: UTF8.self) != nil
  }

  /// Whether `name` can be the name of a meta context: a string, and not empty.
  public static func isContextName(_ name: String) -> Bool {
    !name.isEmpty && isWellFormed(name.utf8)
  }

  /// `bytes` as text for an error: at most 80 scalars, control characters replaced.
  ///
  /// A name of 4096 bytes once ended QEMU's server through its own error text (CVE-2020-10761).
  static func shown(_ bytes: some Collection<UInt8>) -> String {
    var text = String.UnicodeScalarView()
    // 80 scalars fill at most 320 bytes; decoding no more than that bounds the work.
    for scalar in String(decoding: bytes.prefix(4 * shownCharactersMax), as: UTF8.self)
      .unicodeScalars
    {
      guard text.count < shownCharactersMax else { break }
      text.append(isShowable(scalar) ? scalar : "\u{fffd}")
    }
    return String(text)
  }

  /// A peer's text in full, with control characters replaced: what a terminal may be given.
  public static func printable(_ text: String) -> String {
    var shown = String.UnicodeScalarView()
    for scalar in text.unicodeScalars { shown.append(isShowable(scalar) ? scalar : "\u{fffd}") }
    return String(shown)
  }

  private static func isShowable(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .privateUse, .surrogate,
      .unassigned:
      false
    default: true
    }
  }
}

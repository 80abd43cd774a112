// SPDX-License-Identifier: Apache-2.0
//
// Identities and their pre-shared keys, as psktool(1) writes them: `identity:key in hexadecimal`,
// one a line; an identity that starts with # is in hexadecimal too. This file performs no I/O.

/// Who may connect with which key. A fault names a line, never what stands in it.
public struct PSKTable: Sendable {
  public struct Entry: Sendable {
    public let identity: [UInt8]
    public let key: [UInt8]
  }

  /// Identities of one table; each handshake looks through all of them.
  public static var entriesMax: Int { 4_096 }
  /// Bytes of an identity (RFC 4279, section 5.3, asks for at least 128).
  public static var identityByteCountMax: Int { 1_024 }
  /// Bytes of a key (RFC 4279, section 5.3, asks for at least 64). A short key can be guessed.
  public static var keyByteCountRange: ClosedRange<Int> { 16...512 }

  public let entries: [Entry]

  /// Reads the text of a key file.
  public init(parsing text: [UInt8]) throws(TLSFault) {
    var entries: [Entry] = []
    var known: Set<[UInt8]> = []
    var number = 0
    for line in text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
      number += 1
      let content = PSKTable.withoutReturn(line)
      if content.isEmpty { continue }
      let entry = try PSKTable.entry(content, "line \(number)")
      guard known.insert(entry.identity).inserted else {
        throw TLSFault("line \(number)", "its identity is in the file already")
      }
      guard entries.count < PSKTable.entriesMax else {
        throw TLSFault("line \(number)", "there are more than \(PSKTable.entriesMax) identities")
      }
      entries.append(entry)
    }
    guard !entries.isEmpty else { throw TLSFault("file", "there is no identity in it") }
    self.entries = entries
  }

  /// A table of one identity, for a client.
  public init(identity: [UInt8], key: [UInt8]) {
    entries = [Entry(identity: identity, key: key)]
  }

  private static func entry(
    _ line: ArraySlice<UInt8>, _ subject: String
  ) throws(TLSFault) -> Entry {
    guard let colon = line.lastIndex(of: UInt8(ascii: ":")) else {
      throw TLSFault(subject, "it is not IDENTITY:KEY")
    }
    var identity = Array(line[..<colon])
    if identity.first == UInt8(ascii: "#") {
      guard let decoded = bytes(ofHexadecimal: identity[1...]) else {
        throw TLSFault(subject, "its identity starts with # and is not hexadecimal")
      }
      identity = decoded
    }
    guard !identity.contains(0) else {
      throw TLSFault(subject, "its identity has a zero byte")
    }
    guard (1...identityByteCountMax).contains(identity.count) else {
      throw TLSFault(subject, "its identity is not of 1...\(identityByteCountMax) bytes")
    }
    guard let key = bytes(ofHexadecimal: line[(colon + 1)...]) else {
      throw TLSFault(subject, "its key is not hexadecimal")
    }
    guard keyByteCountRange.contains(key.count) else {
      throw TLSFault(
        subject,
        "its key has \(key.count) bytes, and"
          + " \(keyByteCountRange.lowerBound)...\(keyByteCountRange.upperBound) are allowed")
    }
    return Entry(identity: identity, key: key)
  }

  private static func withoutReturn(_ line: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
    line.last == UInt8(ascii: "\r") ? line.dropLast() : line
  }

  /// nil when there is an odd number of digits, or something that is no digit.
  private static func bytes(ofHexadecimal digits: ArraySlice<UInt8>) -> [UInt8]? {
    guard digits.count.isMultiple(of: 2) else { return nil }
    var bytes: [UInt8] = []
    var high: UInt8?
    for digit in digits {
      let value: UInt8
      switch digit {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = digit - UInt8(ascii: "0")
      case UInt8(ascii: "a")...UInt8(ascii: "f"): value = digit - UInt8(ascii: "a") + 10
      case UInt8(ascii: "A")...UInt8(ascii: "F"): value = digit - UInt8(ascii: "A") + 10
      default: return nil
      }
      if let first = high {
        bytes.append(first << 4 | value)
        high = nil
      } else {
        high = value
      }
    }
    return bytes
  }
}

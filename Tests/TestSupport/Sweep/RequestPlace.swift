// SPDX-License-Identifier: Apache-2.0
//
// Where requests of the sweep lie, and the table of what becomes of them. Source: proto.md,
// "Transmission phase", "Size constraints". This file performs no I/O.

/// Where a request lies, and why there.
public struct RequestPlace: Sendable, CustomStringConvertible {
  public let label: String
  public let offset: UInt64
  public let length: UInt64

  private init(_ label: String, _ offset: UInt64, _ length: UInt64) {
    self.label = label
    self.offset = offset
    self.length = length
  }

  public var description: String { label }

  /// - Parameters:
  ///   - isWide: lengths of 64 bits, too.
  ///   - size: of the export, a multiple of 4096 between 32 and 64 MiB.
  public static func all(_ isWide: Bool, byteCount size: UInt64) -> [RequestPlace] {
    let compact = [
      RequestPlace("inside", 4096, 4096), RequestPlace("unaligned", 513, 100),
      RequestPlace("half a block", 4096, 512),
      RequestPlace("no bytes", 4096, 0), RequestPlace("nothing at all", 0, 0),
      RequestPlace("touches the end", size - 4096, 4096),
      RequestPlace("no bytes at the end", size, 0),
      RequestPlace("passes the end", size - 4096, 4097), RequestPlace("behind the end", size, 4096),
      RequestPlace("no bytes behind the end", size + 1, 0),
      RequestPlace("ends at 2^64", 0 &- 4096, 4096), RequestPlace("wraps 2^64", 0 &- 4096, 8192),
      RequestPlace("filter of 12", 0, 12), RequestPlace("filter of 16", 0, 16),
      RequestPlace("filter of 20", 0, 20),
      RequestPlace("max-1", 0, 32 << 20 - 1), RequestPlace("max", 0, 32 << 20),
      RequestPlace("max+1", 0, 32 << 20 + 1),
      RequestPlace("64 MiB", 0, 64 << 20), RequestPlace("64 MiB+1", 0, 64 << 20 + 1),
      RequestPlace("2^31", 0, 1 << 31), RequestPlace("2^32-1", 0, 1 << 32 - 1),
    ]
    guard isWide else { return compact }
    return compact + [
      RequestPlace("2^32", 0, 1 << 32), RequestPlace("2^63", 0, 1 << 63),
      RequestPlace("2^64-1", 0, .max),
      RequestPlace("2^64-1 at 1", 1, .max),
    ]
  }
}

/// The lines of Golden/requests.txt, to be asked.
public struct RequestTable {
  /// The lines of each setting, by its title.
  private var lines: [String: [String]] = [:]

  public init() throws {
    var title = ""
    for line in try GoldenTable("requests.txt").lines() {
      if line.hasPrefix("== ") {
        title = String(line.dropFirst(3))
      } else {
        lines[title, default: []].append(line)
      }
    }
  }

  /// What becomes of `command` (its name there) with `flags` at `place`; nil when no line says so.
  public func verdict(
    _ setting: String, _ command: String, flags: UInt16, at place: RequestPlace
  ) -> String? {
    for line in lines[setting] ?? [] where line.hasPrefix(command + " {") {
      let opened = line.dropFirst(command.count + 2)
      let parts = opened.split(separator: "}", maxSplits: 1)
      guard parts.count == 2, RequestTable.contains(parts[0], flags),
        let colon = parts[1].lastIndex(of: ":")
      else { continue }
      let places = parts[1][parts[1].index(colon, offsetBy: 2)...].split(separator: "|")
      if places == ["everywhere"] || places.contains(Substring(place.label)) {
        return String(parts[1][..<colon].dropFirst())
      }
    }
    return nil
  }

  public static let flagNames = [
    "FUA", "NO_HOLE", "DF", "REQ_ONE", "FAST_ZERO", "PAYLOAD_LEN",
  ]

  /// Whether `set`, as the table writes sets of combinations, holds `flags`.
  private static func contains(_ set: Substring, _ flags: UInt16) -> Bool {
    if set == "any" { return true }
    if set == "none" { return flags == 0 }
    guard !set.hasPrefix("others 0x") else {
      let words = set.dropFirst(9).split(separator: ",")
      guard flags < 64 else { return words.count == 2 }
      return (UInt64(words[0], radix: 16) ?? 0) & (1 << UInt64(flags)) != 0
    }
    var mayBe: UInt16 = 0
    var mustBe: UInt16 = 0
    for word in set.split(separator: " ") {
      let isOptional = word.hasSuffix("?")
      let name = String(isOptional ? word.dropLast() : word)
      guard let bit = flagNames.firstIndex(of: name) else { return false }
      mayBe |= 1 << UInt16(bit)
      if !isOptional { mustBe |= 1 << UInt16(bit) }
    }
    return flags & ~mayBe == 0 && flags & mustBe == mustBe
  }
}

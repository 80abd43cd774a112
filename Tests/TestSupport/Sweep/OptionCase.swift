// SPDX-License-Identifier: Apache-2.0
//
// Every option in every length that has been somebody's downfall. Source: nbd-checks, the sweep;
// proto.md, "Option types". This file performs no I/O.

/// One option as a client may send it: right, too short, too long, or too long to be believed.
public struct OptionCase: Sendable, CustomStringConvertible {
  public let option: UInt32
  /// What is peculiar about it: a length, or how its inner lengths lie.
  public let label: String
  /// The header, and the data as far as anybody would send it.
  public let bytes: [UInt8]

  /// Data of this length and more is announced and not sent.
  static var sentByteCountMax: Int { 1 << 20 }

  init(_ option: UInt32, _ label: String, _ data: [UInt8]) {
    self.option = option
    self.label = label
    bytes = WireClient.option(option, data)
  }

  private init(_ option: UInt32, _ label: String, announcing byteCount: UInt32) {
    self.option = option
    self.label = label
    bytes = Array("IHAVEOPT".utf8) + wire(option, byteCount)
  }

  /// The options of the specification, the number below them, and two above.
  public static let options: [UInt32] = Array(0...12) + [.max]

  public var name: String { OptionCase.name(of: option) }
  public var description: String { "\(name) \(label)" }

  public static func name(of option: UInt32) -> String {
    let names: [UInt32: String] = [
      1: "EXPORT_NAME", 2: "ABORT", 3: "LIST", 4: "PEEK_EXPORT", 5: "STARTTLS", 6: "INFO", 7: "GO",
      8: "STRUCTURED_REPLY", 9: "LIST_META_CONTEXT", 10: "SET_META_CONTEXT",
      11: "EXTENDED_HEADERS", .max: "2^32-1",
    ]
    return names[option] ?? "\(option)"
  }

  /// All cases of one option, for a server whose only export is `export`.
  public static func all(of option: UInt32, export: String) -> [OptionCase] {
    let exact = soundData(of: option, export)
    var cases = [OptionCase(option, "0", [])]
    if exact.count > 2 {
      cases.append(OptionCase(option, "1", Array(exact.prefix(1))))
      cases.append(OptionCase(option, "exact-1", exact.dropLast()))
    }
    if !exact.isEmpty { cases.append(OptionCase(option, "exact", exact)) }
    cases.append(OptionCase(option, "exact+1", exact + [0]))
    for count in [4095, 4096, 4097, sentByteCountMax] {
      let label = count == sentByteCountMax ? "2^20" : "\(count)"
      cases.append(OptionCase(option, label, longData(of: option, count)))
    }
    cases.append(OptionCase(option, "2^31", announcing: 1 << 31))
    cases.append(OptionCase(option, "2^32-1", announcing: .max))
    return cases + innerCases(of: option, export)
  }

  /// Data that is right; empty for options without any.
  private static func soundData(of option: UInt32, _ export: String) -> [UInt8] {
    switch option {
    case 1: Array(export.utf8)
    case 6, 7: WireClient.infoData(export, [3])
    case 9, 10: WireClient.metaData(export, ["base:allocation"])
    default: []
    }
  }

  /// Data of `count` bytes whose inner lengths agree: a name as long as fits, and nothing else.
  private static func longData(of option: UInt32, _ count: Int) -> [UInt8] {
    func name(_ overhead: Int) -> String { String(repeating: "n", count: count - overhead) }
    switch option {
    case 1: return Array(name(0).utf8)
    case 6, 7: return WireClient.infoData(name(6))
    case 9, 10: return WireClient.metaData(name(8), [])
    default: return [UInt8](repeating: 0, count: count)
    }
  }

  /// Inner lengths that pass the outer one, strings that are none, and too much of everything.
  private static func innerCases(of option: UInt32, _ export: String) -> [OptionCase] {
    func made(_ label: String, _ data: [UInt8]) -> OptionCase { OptionCase(option, label, data) }
    let name = Array(export.utf8)
    let longName = [UInt8](repeating: UInt8(ascii: "n"), count: 4096)
    let badNames: [(String, [UInt8])] = [
      ("unknown name", Array("nowhere".utf8)), ("NUL in the name", name + [0]),
      ("name is no UTF-8", [0xff, 0xfe]), ("control characters", [0x1b, 0x5b, 0x32, 0x4a, 0x0a]),
    ]
    switch option {
    case 1: return badNames.map { made($0.0, $0.1) }
    case 6, 7:
      let requests = (0...UInt16(65_534)).flatMap { wire($0) }
      return badNames.map { made($0.0, counted($0.1) + [0, 0]) } + [
        made("name of 4096", counted(longName) + [0, 0]),
        made("name of 4097", counted(longName + [0x6e]) + [0, 0]),
        made("name one too long", wire(UInt32(name.count + 3)) + name + [0, 0]),
        made("name of 2^32-1", wire(UInt32.max) + name + [0, 0]),
        made("requests one short", counted(name) + [0, 2, 0, 3]),
        made("requests missing", counted(name) + [0xff, 0xff]),
        made("a request twice", counted(name) + [0, 2, 0, 3, 0, 3]),
        made("65535 requests", counted(name) + [0xff, 0xff] + requests),
      ]
    case 9, 10:
      let query = counted("base:allocation")
      return badNames.map { made($0.0, counted($0.1) + [0, 0, 0, 0]) } + [
        made("name one too long", wire(UInt32(name.count + 5)) + name + [0, 0, 0, 0]),
        made("name of 2^32-1", wire(UInt32.max) + name + [0, 0, 0, 0]),
        made("no queries", counted(name) + [0, 0, 0, 0]),
        made("query one too long", counted(name) + [0, 0, 0, 1, 0, 0, 0, 16] + query.dropFirst(4)),
        made("query of 2^32-1", counted(name) + wire(UInt32(1), UInt32.max) + query.dropFirst(4)),
        made("queries one short", counted(name) + [0, 0, 0, 2] + query),
        made("2^32-1 queries", counted(name) + wire(UInt32.max) + query),
        made("64 queries", counted(name) + wire(UInt32(64)) + (0..<64).flatMap { _ in query }),
        made("65 queries", counted(name) + wire(UInt32(65)) + (0..<65).flatMap { _ in query }),
        made("unknown query", WireClient.metaData(export, ["x-nothing:here"])),
        made("wildcards", WireClient.metaData(export, ["base:", "qemu:"])),
      ]
    default: return []
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The text of a configuration file: sections of `key = value` lines. What the keys mean is the
// command line's business. Source: stratad(8), "CONFIGURATION FILE". This file performs no I/O.

/// A file as it was written, with line numbers for whoever finds fault with it.
public struct ConfigFile: Hashable, Sendable {
  public struct Entry: Hashable, Sendable {
    public let key: String
    public let value: String
    /// Counted from 1.
    public let line: Int
  }

  /// An export's entries, and the line where its section begins.
  public struct Export: Hashable, Sendable {
    public let name: String
    public let line: Int
    public var entries: [Entry] = []
  }

  /// What `[server]` says.
  public private(set) var server: [Entry] = []
  /// What each `[export NAME]` says, in the order of the file.
  public private(set) var exports: [Export] = []

  /// - Parameter path: for messages.
  /// - Throws: the first line that is none of the three kinds, or stands before a section.
  public init(parsing text: String, path: String) throws(ControlError) {
    var isInServer = false
    for (index, raw) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
      let line = ConfigFile.trim(raw)
      let place = "\(path):\(index + 1)"
      if line.isEmpty || line.hasPrefix("#") || line.hasPrefix(";") { continue }
      if line.hasPrefix("[") {
        isInServer = try beginSection(line, place, index + 1)
        continue
      }
      guard let sign = line.firstIndex(of: "=") else {
        throw ControlError(place, "the line is no section, no comment and no KEY = VALUE")
      }
      let entry = Entry(
        key: ConfigFile.trim(line[..<sign]),
        value: ConfigFile.trim(line[line.index(after: sign)...]), line: index + 1)
      if isInServer {
        server.append(entry)
      } else {
        guard !exports.isEmpty else {
          throw ControlError(
            place, "the line stands before any section", wayOut: "write [server] above it")
        }
        exports[exports.count - 1].entries.append(entry)
      }
    }
  }

  /// Returns whether the section is the server's.
  private mutating func beginSection(
    _ line: String, _ place: String, _ number: Int
  ) throws(ControlError) -> Bool {
    guard line.hasSuffix("]") else { throw ControlError(place, "the section has no closing ]") }
    let title = ConfigFile.trim(line.dropFirst().dropLast())
    if title == "server" { return true }
    guard title.hasPrefix("export ") else {
      throw ControlError(
        place, "there is no section [\(title)]", wayOut: "write [server] or [export NAME]")
    }
    exports.append(Export(name: ConfigFile.trim(title.dropFirst(7)), line: number))
    return false
  }

  private static func trim(_ text: some StringProtocol) -> String {
    var rest = Substring(text)
    while let first = rest.first, first.isWhitespace { rest.removeFirst() }
    while let last = rest.last, last.isWhitespace { rest.removeLast() }
    return String(rest)
  }
}

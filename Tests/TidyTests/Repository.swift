// SPDX-License-Identifier: Apache-2.0
//
// The files of this repository as the tidy tests see them. Reads the checkout that the tests were
// built in.
// Source of truth for the rules: tools/STYLE.md.

import Foundation

/// One text file of the repository, by lines.
struct SourceText: Sendable, CustomStringConvertible {
  /// The path from the root of the repository.
  let path: String
  let lines: [String]

  var description: String { path }

  /// The module of a file in `Sources/<module>/…` or `Tests/<module>/…`, else nil.
  var module: String? {
    let parts = path.split(separator: "/")
    return parts.count > 2 ? String(parts[1]) : nil
  }

  /// The lines without comments and without the contents of string literals, line by line.
  var code: [String] {
    var isInText = false
    return lines.map { line in
      let pieces = line.components(separatedBy: "\"\"\"")
      defer { if pieces.count % 2 == 0 { isInText.toggle() } }
      if isInText || pieces.count > 1 { return "" }
      return Self.withoutTextAndComment(line)
    }
  }

  /// One line without its comment; string literals are left empty.
  private static func withoutTextAndComment(_ line: String) -> String {
    var kept = ""
    var isInString = false
    var previous: Character = " "
    for character in line {
      if character == "\"" && previous != "\\" {
        isInString.toggle()
      } else if !isInString {
        if character == "/" && previous == "/" { return String(kept.dropLast()) }
        kept.append(character)
      }
      previous = previous == "\\" && character == "\\" ? " " : character
    }
    return kept
  }

  /// Where `pattern` matches in the code, as `path:line: text`.
  func matches(of pattern: String) -> [String] {
    code.enumerated().compactMap { index, line in
      line.range(of: pattern, options: .regularExpression) == nil
        ? nil : "\(path):\(index + 1): \(lines[index].trimmingCharacters(in: .whitespaces))"
    }
  }
}

/// The checkout.
enum Repository {
  static let root = URL(filePath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  /// The files below `folder` whose names end in one of `endings`, sorted by path.
  static func files(below folder: String, endings: [String]) throws -> [SourceText] {
    let start = root.appending(path: folder).path
    guard let names = FileManager.default.enumerator(atPath: start) else { return [] }
    let wanted = names.compactMap { $0 as? String }.filter { name in
      endings.contains { name.hasSuffix($0) } && !name.hasPrefix(".")
        && !name.contains("__pycache__")
        && !root.appending(path: "\(folder)/\(name)").resourceIsFolder
    }
    return try wanted.sorted().map { try text("\(folder)/\($0)") }
  }

  /// One file by its path from the root.
  static func text(_ path: String) throws -> SourceText {
    let data = try Data(contentsOf: root.appending(path: path))
    let lines = String(decoding: data, as: UTF8.self).split(
      separator: "\n", omittingEmptySubsequences: false)
    return SourceText(path: path, lines: lines.map(String.init))
  }

  /// The Swift sources of the product.
  static func sources() throws -> [SourceText] { try files(below: "Sources", endings: [".swift"]) }

  /// The Swift sources of product and tests.
  static func swift() throws -> [SourceText] {
    try sources() + files(below: "Tests", endings: [".swift"]) + [text("Package.swift")]
  }

  /// Scripts: everything in tools/ and .ci that is a program or a module of one.
  static func scripts() throws -> [SourceText] {
    let candidates =
      try files(below: "tools", endings: [""]).filter {
        !$0.path.contains("/decisions/") && !$0.path.contains("/man/") && !$0.path.hasSuffix(".md")
      } + [text(".ci/run")]
    return candidates.filter { script in
      script.path.hasSuffix(".py") || script.path.hasSuffix(".sh")
        || script.lines.first?.hasPrefix("#!") == true
    }
  }
}

extension URL {
  /// Is there a folder at this path?
  fileprivate var resourceIsFolder: Bool {
    var isFolder: ObjCBool = false
    return FileManager.default.fileExists(atPath: path, isDirectory: &isFolder)
      && isFolder.boolValue
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The shape of text: widths, blanks, headers, titles, and nothing of the machine it was written on.

import Foundation
import Testing

private let columnMax = 100
private let longFileLineCount = 350
private let longFunctionLineCount = 60

@Suite struct `the text of every file` {
  @Test func `fits into 100 columns`() throws {
    for source in try Repository.swift() {
      for (index, line) in source.lines.enumerated() where line.count > columnMax {
        Issue.record("\(source):\(index + 1): \(line.count) columns")
      }
    }
  }

  @Test func `has no tabs, no blanks at line ends, and one newline at its end`() throws {
    for source in try Repository.swift() + Repository.scripts() {
      for (index, line) in source.lines.enumerated() {
        #expect(!line.contains("\t"), "\(source):\(index + 1): a tab")
        #expect(line.last?.isWhitespace != true, "\(source):\(index + 1): a blank at the end")
      }
      #expect(source.lines.last == "", "\(source): no newline at the end")
      #expect(source.lines.dropLast().last != "", "\(source): blank lines at the end")
    }
  }

  @Test func `begins with its licence and says what it is`() throws {
    let headers = try Repository.files(below: "Sources", endings: [".c", ".h", ".modulemap"])
    for source in try Repository.swift() + Repository.scripts() + headers {
      let head = source.lines.prefix(3).joined(separator: "\n")
      #expect(head.contains("SPDX-License-Identifier: Apache-2.0"), "\(source): no licence line")
    }
    for source in try Repository.sources() {
      let head = source.lines.prefix(4)
      #expect(
        head.contains { $0.hasPrefix("// ") && !$0.contains("SPDX") },
        "\(source): the header does not say what the file is")
    }
  }

  @Test func `names no machine, registry or build folder`() throws {
    let pattern = [
      "/wo" + "rk/", "/ho" + "me/[a-z]", "\\.\\./sha" + "red", "deb\\.debian\\." + "org",
    ]
    .joined(separator: "|")
    let manuals = try Repository.files(below: "tools", endings: [".md"])
    let readme = (try? [Repository.text("README.md")]) ?? []
    for source in try Repository.swift() + Repository.scripts() + manuals + readme {
      for (index, line) in source.lines.enumerated() {
        #expect(
          line.range(of: pattern, options: .regularExpression) == nil,
          "\(source):\(index + 1): \(line)")
      }
    }
  }

  @Test func `has one title when it is Markdown`() throws {
    var documents = try Repository.files(below: "tools", endings: [".md"])
    documents += try Repository.files(below: "Sources", endings: [".md"])
    documents += try Repository.files(below: "Images", endings: [".md"])
    documents.append(try Repository.text("README.md"))
    for document in documents {
      var isInCode = false
      var titles = 0
      for line in document.lines {
        if line.hasPrefix("```") { isInCode.toggle() }
        if !isInCode && line.hasPrefix("# ") { titles += 1 }
      }
      #expect(titles == 1, "\(document) has \(titles) titles")
    }
  }
}

@Suite struct `the size of code` {
  /// Lists, never fails: size is a question (tools/STYLE.md, "Shape").
  @Test func `long files and functions are listed`() throws {
    for source in try Repository.swift() {
      if source.lines.count > longFileLineCount {
        print("long file: \(source), \(source.lines.count) lines: which noun is the second one?")
      }
      for (name, lineCount) in Self.functions(of: source) where lineCount > longFunctionLineCount {
        print("long function: \(source): \(name), \(lineCount) lines")
      }
    }
  }

  /// The functions of a file with their lengths, found by indentation (swift format keeps it).
  private static func functions(of source: SourceText) -> [(name: String, lineCount: Int)] {
    var open: (name: String, indent: Int, start: Int)?
    var found: [(name: String, lineCount: Int)] = []
    for (index, line) in source.lines.enumerated() {
      let indent = line.prefix { $0 == " " }.count
      if let function = open {
        if indent == function.indent && line.dropFirst(indent).hasPrefix("}") {
          found.append((function.name, index - function.start + 1))
          open = nil
        }
      } else if line.range(of: #"\b(func|init)\b.*[({]\s*$"#, options: .regularExpression) != nil {
        open = (line.trimmingCharacters(in: .whitespaces), indent, index)
      }
    }
    return found
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// One value of --export: NAME=IMAGE[,OPTION[=VALUE]...]. A comma that belongs to a value is
// doubled, as in QEMU's options.

import ArgumentParser
import Control

/// An export with a name and options of its own.
struct NamedExport {
  let name: String
  let image: String
  let options: ExportOptions

  init(name: String, image: String, options: ExportOptions) {
    self.name = name
    self.image = image
    self.options = options
  }

  /// - Throws: what is wrong with the text.
  init(parsing text: String) throws {
    var words = NamedExport.split(text)
    let head = words.removeFirst()
    guard let sign = head.firstIndex(of: "="), head.index(after: sign) < head.endIndex else {
      throw ValidationError("--export: '\(text)' is not NAME=IMAGE")
    }
    name = String(head[..<sign])
    image = String(head[head.index(after: sign)...])
    var arguments: [String] = []
    for word in words {
      guard let sign = word.firstIndex(of: "=") else {
        arguments.append("--\(word)")
        continue
      }
      arguments += ["--\(word[..<sign])", String(word[word.index(after: sign)...])]
    }
    do {
      options = try ExportOptions.parse(arguments)
    } catch {
      throw ValidationError("--export \(name): \(StratadCommand.message(for: error))")
    }
  }

  /// The parts between single commas.
  private static func split(_ text: String) -> [String] {
    var parts = [""]
    var rest = Substring(text)
    while let character = rest.popFirst() {
      if character != "," {
        parts[parts.count - 1].append(character)
      } else if rest.first == "," {
        rest.removeFirst()
        parts[parts.count - 1].append(",")
      } else {
        parts.append("")
      }
    }
    return parts
  }
}

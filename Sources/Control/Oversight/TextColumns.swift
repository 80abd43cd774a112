// SPDX-License-Identifier: Apache-2.0
//
// Rows of words under each other. This file performs no I/O.

/// Lays out a table for people: columns two blanks apart, each as wide as its widest cell.
enum TextColumns {
  enum Alignment { case left, right }

  /// The lines of `rows`, which have as many cells each as there are alignments.
  static func lines(_ alignments: [Alignment], _ rows: [[String]]) -> [String] {
    let widths = alignments.indices.map { column in
      rows.reduce(0) { max($0, $1[column].count) }
    }
    return rows.map { row in
      var line = row.indices.map { pad(row[$0], widths[$0], alignments[$0]) }
        .joined(separator: "  ")
      while line.last == " " { line.removeLast() }
      return line
    }
  }

  private static func pad(_ text: String, _ width: Int, _ alignment: Alignment) -> String {
    let blanks = String(repeating: " ", count: width - text.count)
    return alignment == .left ? text + blanks : blanks + text
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The answer to `exports` for people. This file performs no I/O.

/// Renders the list of a daemon's exports.
public enum ExportsText {
  public static func text(of answer: JSONValue) -> String {
    let head = ["export", "size", "access", "clients", "at most", "in all"]
    let rows = (answer["exports"]?.elements ?? []).map { export in
      [
        StatusText.printable(export["export"]?.text), StatusText.bytes(export, "disk-bytes"),
        export["read-only"]?.bool == true ? "read-only" : "read-write",
        "\(StatusText.number(export["connections"], "now"))",
        "\(StatusText.number(export["connections"], "max"))",
        "\(StatusText.number(export["connections"], "total"))",
      ]
    }
    return TextColumns.lines([.left, .right, .left, .right, .right, .right], [head] + rows)
      .joined(separator: "\n") + "\n"
  }
}

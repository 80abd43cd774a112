// SPDX-License-Identifier: Apache-2.0
//
// A table of answers that is kept in the repository, and how it is compared and written anew.
// This file reads and, when told so by the environment, writes files.

import Foundation

/// One file of `Tests/NBDProtocolTests/Golden`.
///
/// The tests compute the lines; a difference fails them and shows the first lines that differ.
/// `STRATA_WRITE_GOLDEN=1 swift test --filter NBDProtocolTests` writes the files from what the
/// product answers now: look at `git diff` before you believe it.
public struct GoldenTable {
  public let path: String

  public init(_ name: String) {
    path =
      URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appending(path: "NBDProtocolTests/Golden/\(name)").path
  }

  /// The lines of the file, without comments.
  public func lines() throws -> [String] {
    try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").map(String.init)
      .filter { !$0.hasPrefix("#") }
  }

  /// Returns what differs between the file and `computed`, at most `shownMax` lines of it.
  ///
  /// When the environment says so the file is written instead, under `title`.
  public func difference(
    from computed: [String], title: String, shownMax: Int = 20
  ) throws -> [String] {
    if ProcessInfo.processInfo.environment["STRATA_WRITE_GOLDEN"] == "1" {
      let text = (title.split(separator: "\n").map { "# \($0)" } + computed).joined(separator: "\n")
      try (text + "\n").write(toFile: path, atomically: true, encoding: .utf8)
      return []
    }
    let changes = computed.difference(from: try lines())
    return changes.prefix(shownMax).map { change in
      switch change {
      case .insert(_, let line, _): "now:  \(line)"
      case .remove(_, let line, _): "kept: \(line)"
      }
    } + (changes.count > shownMax ? ["and \(changes.count - shownMax) more"] : [])
  }
}

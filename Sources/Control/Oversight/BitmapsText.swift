// SPDX-License-Identifier: Apache-2.0
//
// The answer to `bitmaps` for people. This file performs no I/O.

/// Renders the list of a daemon's dirty bitmaps.
public enum BitmapsText {
  public static func text(of answer: JSONValue) -> String {
    let bitmaps = answer["bitmaps"]?.elements ?? []
    guard !bitmaps.isEmpty else { return "no bitmaps\n" }
    let head = ["bitmap", "granularity", "state", "dirty", "memory", "clients"]
    return TextColumns.lines(
      [.left, .right, .left, .right, .right, .left], [head] + bitmaps.map(row)
    ).joined(separator: "\n") + "\n"
  }

  private static func row(_ bitmap: JSONValue) -> [String] {
    let clients = bitmap["clients"]?.elements?.compactMap(\.integer) ?? []
    let words: [(String, Bool)] = [
      (bitmap["enabled"]?.bool == true ? "recording" : "disabled", bitmap["unusable"] == nil),
      ("unusable", bitmap["unusable"] != nil), ("frozen", bitmap["frozen"]?.bool == true),
      ("persistent", bitmap["persistent"]?.bool == true),
      ("recovered (may be wider)", bitmap["recovered"]?.bool == true),
    ]
    let state = words.filter(\.1).map(\.0).joined(separator: ", ")
    return [
      bitmap["name"]?.text ?? "?", StatusText.bytes(bitmap, "granularity"), state,
      StatusText.bytes(bitmap, "dirty-bytes"), StatusText.bytes(bitmap, "memory-bytes"),
      clients.isEmpty ? "-" : clients.map { "\($0)" }.joined(separator: " "),
    ]
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The answer to `clients` for people. This file performs no I/O.

/// Renders the list of a daemon's clients.
public enum ClientsText {
  public static func text(of answer: JSONValue) -> String {
    let clients = answer["clients"]?.elements ?? []
    guard !clients.isEmpty else { return "no clients\n" }
    let head = [
      "client", "peer", "connected", "phase", "export", "replies", "contexts", "in flight",
      "buffered", "requests", "errors", "received", "sent",
    ]
    let alignments: [TextColumns.Alignment] =
      [.right, .left, .right, .left, .left, .left, .left] + Array(repeating: .right, count: 6)
    return TextColumns.lines(alignments, [head] + clients.map(row)).joined(separator: "\n") + "\n"
  }

  private static func row(_ client: JSONValue) -> [String] {
    [
      "\(StatusText.number(client, "client"))", peer(client["peer"], client["tls"]),
      StatusText.duration(StatusText.number(client, "connected-seconds")),
      (client["phase"]?.text ?? "?") + (client["stalled"]?.bool == true ? ", stalled" : ""),
      StatusText.printable(client["export"]?.text ?? "-"), replies(client),
      contexts(client["contexts"]),
      "\(StatusText.number(client, "in-flight"))", StatusText.bytes(client, "buffered-bytes"),
      "\(StatusText.number(client, "requests"))", "\(StatusText.number(client, "errors"))",
      StatusText.bytes(client, "bytes-received"), StatusText.bytes(client, "bytes-sent"),
    ]
  }

  private static func replies(_ client: JSONValue) -> String {
    if client["extended-headers"]?.bool == true { return "extended" }
    return client["structured-replies"]?.bool.map { $0 ? "structured" : "simple" } ?? "-"
  }

  /// Names from certificates are a stranger's text, and only for programs.
  private static func peer(_ peer: JSONValue?, _ tls: JSONValue?) -> String {
    let version = tls?["version"]?.text.map { ", \($0)" } ?? ""
    return address(of: peer) + version
  }

  private static func address(of peer: JSONValue?) -> String {
    switch peer?["kind"]?.text {
    case "unix":
      "uid \(StatusText.number(peer, "uid")), gid \(StatusText.number(peer, "gid")),"
        + " pid \(StatusText.number(peer, "pid"))"
    case "vsock": "cid \(StatusText.number(peer, "cid"))"
    case "tcp": peer?["address"]?.text ?? "?"
    default: "?"
    }
  }

  private static func contexts(_ contexts: JSONValue?) -> String {
    let names = contexts?.elements?.compactMap(\.text) ?? []
    return names.isEmpty ? "-" : names.joined(separator: " ")
  }
}

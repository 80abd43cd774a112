// SPDX-License-Identifier: Apache-2.0
//
// A client of the control socket that can be right, and wrong on purpose. Source: stratad(8),
// "CONTROL SOCKET".

import Foundation
import TestSupport

/// One connection to a control socket.
final class ControlConnection {
  let socket: WireSocket

  init(_ path: String) throws { socket = try WireSocket(connectingTo: path) }

  func send(_ text: String) throws { try socket.send(Array(text.utf8)) }

  func receiveLine() throws -> String {
    var line: [UInt8] = []
    while true {
      let byte = try socket.receive(1)[0]
      if byte == UInt8(ascii: "\n") { return String(decoding: line, as: UTF8.self) }
      line.append(byte)
    }
  }

  /// Sends a line and returns what the answer means.
  func ask(_ line: String) throws -> Answer {
    try send("\(line)\n")
    return try Answer(try receiveLine())
  }

  /// Asks over a connection of its own.
  static func ask(_ line: String, at path: String) throws -> Answer {
    try ControlConnection(path).ask(line)
  }
}

/// An answer, to be walked through by names: `answer["disk"]["completions"].number`.
struct Answer {
  let value: Any?

  init(_ line: String) throws {
    value = try JSONSerialization.jsonObject(with: Data(line.utf8), options: .fragmentsAllowed)
  }

  private init(value: Any?) { self.value = value }

  subscript(name: String) -> Answer { Answer(value: (value as? [String: Any])?[name]) }
  var number: Int? { (value as? NSNumber)?.intValue }
  var text: String? { value as? String }
  var isTrue: Bool? { (value as? NSNumber)?.boolValue }
  var list: [Answer] { (value as? [Any] ?? []).map { Answer(value: $0) } }
  var names: Set<String> { Set((value as? [String: Any] ?? [:]).keys) }
}

extension ServeFixture {
  var control: String { folder.path("c") }

  /// A server with a control socket.
  func serveControlled(_ more: String...) throws -> ServedProcess {
    try ServedProcess(stratad: arguments + ["--control", control] + more).waitUntilReady()
  }

  func status() throws -> Answer { try ControlConnection.ask(#"{"ask":"status"}"#, at: control) }

  /// The same, again and again for up to five seconds while all control connections are taken:
  /// those of clients that are gone end when the server comes to them.
  func statusWhenThereIsRoom() throws -> Answer {
    let deadline = Date(timeIntervalSinceNow: 5)
    while true {
      let answer = try status()
      let isFull = answer["error"].text?.contains("control connections are open") == true
      if !isFull || Date() > deadline { return answer }
      usleep(1_000)
    }
  }

  func clients() throws -> [Answer] {
    try ControlConnection.ask(#"{"ask":"clients"}"#, at: control)["clients"].list
  }

  /// Waits until the server has `count` clients.
  func waitForClients(_ count: Int, seconds: Double = 5) throws {
    let deadline = Date(timeIntervalSinceNow: seconds)
    while try clients().count != count {
      guard Date() < deadline else { throw ServeError("not \(count) clients: \(try clients())") }
      usleep(2_000)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Asking a running daemon over its control socket. Source: stratad(8), "CONTROL SOCKET".

import Glibc
import LinuxIO

/// The other end of the control socket, for one question.
public enum ControlClient {
  /// 10,000 clients need some 5 MiB.
  static let answerByteCountMax = 32 << 20

  /// Asks the daemon whose control socket is at `path`.
  ///
  /// - Returns: its answer, as the line that came and as the value that the line means.
  /// - Throws: also when the daemon refuses, in its words.
  public static func ask(
    _ request: ControlRequest, at path: String
  ) throws(ControlError) -> (line: String, value: JSONValue) {
    let socket = try connect(path)
    let deadline = MonotonicClock.nanoseconds + UInt64(request.answerSecondsMax) * 1_000_000_000
    try send(Array("\(request.line)\n".utf8), to: socket, path, deadline)
    let line = try receiveLine(from: socket, path, deadline)
    let value: JSONValue
    do throws(JSONFault) {
      value = try JSONReader.read(line)
    } catch {
      throw ControlError(path, "the answer is no JSON: \(error.reason)", wayOut: notOurs)
    }
    if let refusal = value["error"]?.text { throw ControlError(path, refusal) }
    return (String(decoding: line, as: UTF8.self), value)
  }

  private static let notOurs = "name the socket that stratad was given with --control"

  private static func connect(_ path: String) throws(ControlError) -> ByteSocket {
    let address: UnixSocketPath
    do throws(SocketError) {
      address = try UnixSocketPath(path)
    } catch {
      throw ControlError(path, error)
    }
    do throws(SystemError) {
      return try ByteSocket(connectingTo: address)
    } catch {
      throw ControlError(path, error, wayOut: wayOut(of: error.errno))
    }
  }

  private static func wayOut(of errno: Int32) -> String? {
    switch errno {
    case ENOENT, ENOTSOCK: notOurs
    case ECONNREFUSED: "the daemon has ended, or the file is no control socket"
    case EACCES, EPERM: "ask as the user who started the daemon, or as root"
    default: nil
    }
  }

  private static func send(
    _ bytes: [UInt8], to socket: borrowing ByteSocket, _ path: String, _ deadline: UInt64
  ) throws(ControlError) {
    var sent = 0
    while sent < bytes.count {
      switch socket.send(bytes[sent...]) {
      case .bytes(let count): sent += count
      case .wouldBlock: try wait(socket, .output, path, deadline)
      // The daemon may have refused us before we asked: its words are still to be read.
      case .closed: return
      }
    }
  }

  private static func receiveLine(
    from socket: borrowing ByteSocket, _ path: String, _ deadline: UInt64
  ) throws(ControlError) -> [UInt8] {
    var line: [UInt8] = []
    while true {
      switch socket.receive(byteCountMax: 64 << 10) {
      case .bytes(let bytes):
        line += bytes
        if line.last == UInt8(ascii: "\n") { return line.dropLast() }
        guard line.count <= answerByteCountMax, !bytes.contains(UInt8(ascii: "\n")) else {
          throw ControlError(path, "what answers is no control socket", wayOut: notOurs)
        }
      case .wouldBlock: try wait(socket, .input, path, deadline)
      case .closed:
        throw ControlError(path, "the connection ended without an answer", wayOut: notOurs)
      }
    }
  }

  private static func wait(
    _ socket: borrowing ByteSocket, _ direction: ByteSocket.Direction, _ path: String,
    _ deadline: UInt64
  ) throws(ControlError) {
    let now = MonotonicClock.nanoseconds
    let left = deadline > now ? (deadline - now) / 1_000_000 : 0
    guard left > 0, socket.wait(for: direction, milliseconds: Int32(left)) else {
      throw ControlError(path, "no answer in time", wayOut: notOurs)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What a server sent during a handshake, as a line for people. Source: proto.md, "Option reply
// types". This file performs no I/O.

/// Option replies as text.
public enum AnswerText {
  /// One word or sentence for each reply in `bytes`, in order.
  ///
  /// What is no reply comes last, by its length: a size and flags, and perhaps zeroes.
  public static func of(_ bytes: [UInt8]) throws -> String {
    var reader = WireReader(bytes)
    var words: [String] = []
    let magic = wire(UInt64(0x0003_e889_0455_65a9))
    while reader.remainingCount >= 20, bytes[reader.position...].starts(with: magic) {
      _ = try reader.take(12)  // the magic and the option's number
      let type: UInt32 = try reader.integer()
      let byteCount: UInt32 = try reader.integer()
      words.append(try text(type, Array(try reader.take(Int(byteCount)))))
    }
    if reader.remainingCount > 0 { words.append("\(reader.remainingCount) bytes") }
    return words.joined(separator: ", ")
  }

  private static func text(_ type: UInt32, _ payload: [UInt8]) throws -> String {
    var reader = WireReader(payload)
    switch type {
    case 1: return payload.isEmpty ? "ACK" : "ACK with \(payload.count) bytes"
    case 2:
      let name = try reader.take(Int(try reader.integer(UInt32.self)))
      return "SERVER \(String(decoding: name, as: UTF8.self))"
    case 3:
      let names = ["EXPORT", "NAME", "DESCRIPTION", "BLOCK_SIZE"]
      let info = Int(try reader.integer(UInt16.self))
      return "INFO \(info < names.count ? names[info] : "\(info)")"
    case 4:
      let id: UInt32 = try reader.integer()
      return "CONTEXT \(id) \(String(decoding: reader.rest(), as: UTF8.self))"
    default:
      let names = [
        "UNSUP", "POLICY", "INVALID", "PLATFORM", "TLS_REQD", "UNKNOWN", "SHUTDOWN",
        "BLOCK_SIZE_REQD", "TOO_BIG", "EXT_HEADER_REQD",
      ]
      let index = Int(type & 0x7fff_ffff) - 1
      let name = names.indices.contains(index) ? names[index] : "\(index + 1)"
      return "ERR_\(name): \(shortened(String(decoding: payload, as: UTF8.self)))"
    }
  }

  /// A character that comes more than eight times in a row, as `n*80`.
  public static func shortened(_ text: String) -> String {
    var short = ""
    var run: (character: Character, count: Int) = (" ", 0)
    func end() {
      short +=
        run.count > 8
        ? "\(run.character)*\(run.count)" : String(repeating: run.character, count: run.count)
    }
    for character in text {
      if character == run.character {
        run.count += 1
      } else {
        end()
        run = (character, 1)
      }
    }
    end()
    return short
  }
}

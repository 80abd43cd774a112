// SPDX-License-Identifier: Apache-2.0
//
// Reads files whose content may change (keys, certificates, lists of names) for a process that has
// given up the right to read them: a child that stays the user it was started as, has no
// capabilities, and reads the files that it was told of at its start and no other.

import BlockTypes
import Glibc
import LinuxIO
import Sandbox

/// The files of a server that a reload reads again.
struct FileKeeper: ~Copyable {
  /// Bytes of one file.
  static let byteCountMax = 4 << 20
  private static let millisecondsMax: Int32 = 5_000

  private let child: ChildProcess
  private let paths: [String]

  /// Starts the child. The process must have one thread.
  ///
  /// - Parameter paths: the only files that `read` is ever asked for.
  init(_ paths: [String]) throws(ControlError) {
    self.paths = paths
    do throws(SystemError) {
      child = try ChildProcess { socket in FileKeeper.serve(paths, socket) }
    } catch {
      throw ControlError("the reader of keys", error)
    }
  }

  /// The content of the file at `path`, as it is now.
  ///
  /// - Throws: what open(2) or read(2) said; EFBIG above `byteCountMax`.
  func read(_ path: String) throws(ControlError) -> [UInt8] {
    guard let index = paths.firstIndex(of: path) else {
      preconditionFailure("a file is wanted that the reader does not know")
    }
    var question: [UInt8] = []
    question.appendBigEndian(UInt32(index))
    guard child.socket.sendAll(question, milliseconds: FileKeeper.millisecondsMax),
      let head = child.socket.receiveAll(8, milliseconds: FileKeeper.millisecondsMax)
    else { throw ControlError(path, "the process that reads it is gone") }
    let error = Int32(bitPattern: head.loadBigEndian(UInt32.self, at: 0))
    guard error == 0 else { throw ControlError(path, SystemError(errno: error, call: "open")) }
    let byteCount = Int(head.loadBigEndian(UInt32.self, at: 4))
    guard
      let bytes = child.socket.receiveAll(byteCount, milliseconds: FileKeeper.millisecondsMax)
    else { throw ControlError(path, "the process that reads it is gone") }
    return bytes
  }

  /// The same; nil when there is no such file.
  func readIfThere(_ path: String) throws(ControlError) -> [UInt8]? {
    do throws(ControlError) {
      return try read(path)
    } catch {
      if error.errno == ENOENT { return nil }
      throw error
    }
  }

  // MARK: The child

  private static func serve(_ paths: [String], _ socket: borrowing ByteSocket) {
    do throws(SandboxError) {
      try Sandbox(identity: nil).enter()
    } catch {
      return  // the parent finds the socket closed, and says so
    }
    while let question = socket.receiveAll(4, milliseconds: -1) {
      let index = Int(question.loadBigEndian(UInt32.self, at: 0))
      guard index < paths.count else { return }
      guard socket.sendAll(answer(paths[index]), milliseconds: millisecondsMax) else { return }
    }
  }

  private static func answer(_ path: String) -> [UInt8] {
    var answer: [UInt8] = []
    do throws(SystemError) {
      let bytes = try SmallFile.read(path, byteCountMax: byteCountMax)
      answer.appendBigEndian(UInt32(0))
      answer.appendBigEndian(UInt32(bytes.count))
      answer += bytes
    } catch {
      answer.appendBigEndian(UInt32(bitPattern: error.errno))
      answer.appendBigEndian(UInt32(0))
    }
    return answer
  }
}

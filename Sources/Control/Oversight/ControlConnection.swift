// SPDX-License-Identifier: Apache-2.0
//
// One connection to the control socket: lines in, lines out, one question at a time.

import LinuxIO

/// The two byte streams of a control client, and where it stands.
struct ControlConnection: ~Copyable {
  /// Bytes of a line without its line feed.
  static let lineByteCountMax = 64 << 10
  private static let receiveByteCount = 16 << 10

  let socket: ByteSocket
  /// Tells this connection from another that had the same place before.
  let serial: UInt64

  /// Bytes `inputStart...` are not understood yet; before `searchEnd` there is no line feed.
  private var input: [UInt8] = []
  private var inputStart = 0
  private var searchEnd = 0
  private var output: [UInt8] = []
  private var sentCount = 0

  /// The export was asked, and has not answered.
  var isWaiting = false
  /// Close when the output is sent.
  var isEnding = false
  private(set) var inputHasEnded = false
  var isWatched = true
  var interest: EventLoop.Interest = .readable

  init(socket: consuming ByteSocket, serial: UInt64) {
    self.socket = socket
    self.serial = serial
  }

  mutating func append(line: String) {
    output += line.utf8
    output.append(UInt8(ascii: "\n"))
  }

  /// How a transfer went.
  enum Progress { case done, wouldBlock, failed }

  /// Sends what there is to send.
  mutating func transmit() -> Progress {
    while sentCount < output.count {
      switch socket.send(output[sentCount...]) {
      case .bytes(let count): sentCount += count
      case .wouldBlock: return .wouldBlock
      case .closed: return .failed
      }
    }
    output.removeAll()
    sentCount = 0
    return .done
  }

  /// Receives once.
  mutating func receive() -> Progress {
    switch socket.receive(byteCountMax: ControlConnection.receiveByteCount) {
    case .bytes(let bytes):
      input.removeFirst(inputStart)
      searchEnd -= inputStart
      inputStart = 0
      input += bytes
      return .done
    case .wouldBlock: return .wouldBlock
    case .closed:
      inputHasEnded = true
      return .done
    }
  }

  /// What the input holds at its front.
  enum Input {
    case line([UInt8])
    case needsMore
    case tooLong
    /// There will be no more; the flag says whether a line was left unfinished.
    case ended(isCut: Bool)
  }

  /// Takes the next line off the input.
  mutating func takeLine() -> Input {
    guard let end = input[searchEnd...].firstIndex(of: UInt8(ascii: "\n")) else {
      searchEnd = input.count
      let count = input.count - inputStart
      if count > ControlConnection.lineByteCountMax { return .tooLong }
      return inputHasEnded ? .ended(isCut: count > 0) : .needsMore
    }
    let line = input[inputStart..<end]
    guard line.count <= ControlConnection.lineByteCountMax else { return .tooLong }
    inputStart = end + 1
    searchEnd = inputStart
    return .line(Array(line))
  }
}

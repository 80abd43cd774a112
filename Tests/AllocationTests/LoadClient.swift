// SPDX-License-Identifier: Apache-2.0
//
// A client that keeps 16 requests of 4 KiB in flight. Spec: proto.md, "Request message", "Simple
// reply message", "Structured reply chunk message". This file performs socket I/O.

import Foundation
import TestSupport

/// One connection under load. Replies of one kind have one size, so they are only counted.
final class LoadClient {
  private static let depth = 16
  private static let blockByteCount = 4_096
  private let client: WireClient
  private let isStructured: Bool
  private let isExtended: Bool
  private let input = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 16)
  private var state: UInt64 = 1

  init(path: String, structured: Bool, extended: Bool) throws {
    client = try WireClient.entered(path: path, structured: structured, extended: extended)
    isExtended = extended
    isStructured = structured
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(
      client.socket.descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit,
      socklen_t(MemoryLayout<timeval>.size))
  }

  deinit { input.deallocate() }

  private func request(_ command: WireCommand) -> [UInt8] {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    let offset = (state >> 33) % 4_096 * UInt64(Self.blockByteCount)
    let header =
      isExtended
      ? WireClient.extendedHeader(
        command.rawValue, cookie: state, offset: offset, length: UInt64(Self.blockByteCount))
      : WireClient.header(
        command.rawValue, cookie: state, offset: offset, length: UInt32(Self.blockByteCount))
    return command == .write ? header + payload : header
  }

  private let payload = [UInt8](repeating: 0xa5, count: blockByteCount)

  private func replyByteCount(_ command: WireCommand) -> Int {
    guard command == .read else { return isExtended ? 32 : 16 }
    return (isExtended ? 40 : isStructured ? 28 : 16) + Self.blockByteCount
  }

  /// Runs `count` requests. Only the first reply that is wrong in size is noticed, by the deadline.
  func run(_ command: WireCommand, _ count: Int) throws {
    // A thousand different requests, made before, so that the client is not the slower side.
    let requests = (0..<1_000).map { _ in request(command) }
    let size = replyByteCount(command)
    var sent = 0
    var doneByteCount = 0
    while doneByteCount < count * size {
      let answered = doneByteCount / size
      var batch: [UInt8] = []
      while sent < count, sent < answered + Self.depth {
        batch += requests[sent % requests.count]
        sent += 1
      }
      try send(batch)
      let got = recv(client.socket.descriptor, input.baseAddress, input.count, 0)
      guard got > 0 else { throw WireError.timedOut("a reply to request \(answered)") }
      doneByteCount += got
    }
  }

  private func send(_ bytes: [UInt8]) throws {
    var position = 0
    while position < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.send(
          client.socket.descriptor, $0.baseAddress.map { $0 + position }, bytes.count - position,
          Int32(MSG_NOSIGNAL))
      }
      guard count > 0 else { throw WireError.system("send", errno: errno) }
      position += count
    }
  }
}

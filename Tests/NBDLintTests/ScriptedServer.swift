// SPDX-License-Identifier: Apache-2.0
//
// A small NBD server in memory that is right, but for one fault that is asked of it.
// Spec: proto.md. This file performs socket I/O on threads of its own.

import Foundation
import TestSupport

/// What a server can do wrong.
enum Fault: String, CaseIterable, Sendable {
  case none
  case greetingMagic
  case greetingFlag
  case keepsUnknownClientFlag
  case hangsOnUnknownOption
  case closesOnUnknownOption
  case forgetsOptionData
  case garbageOptionReply
  case overlongDescription
  case reservedFlag
  case flagDFWithoutStructured
  case differentSizeByName
  case paddingAfterGo
  case badBlockSize
  case acceptsTrailingJunk
  case acceptsQueryOverrun
  case contextTwice
  case otherCookie
  case shortData
  case simpleReplyToStructuredRead
  case overlappingChunks
  case statusTooLong
  case acceptsReadPastEnd
  case readPastEndEnds
  case wrongWriteErrno
  case losesPayload
  case zeroesTooMuch
  case trimsTooMuch
  case answersDISC
  case hangsAtDISC
  case otherBytesOnSecondRead
}

/// Serves 4 MiB under the name "disk", and as the default export.
final class ScriptedServer: @unchecked Sendable {  // the disk has a lock; the rest is fixed
  static let byteCount = 4 << 20

  let path: String
  private let folder: TemporaryFolder
  private let listener: Int32
  fileprivate let fault: Fault
  private let lock = NSLock()
  private var disk: [UInt8]

  init(_ fault: Fault) throws {
    self.fault = fault
    folder = try TemporaryFolder()
    let path = folder.path("nbd.sock")
    self.path = path
    disk = (0..<64).flatMap { index in
      [UInt8](repeating: UInt8(index % 4 == 3 ? 0 : index + 1), count: 64 << 10)
    }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    let listener = listener
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard result == 0, listen(listener, 64) == 0 else {
      throw WireError.system("bind", errno: errno)
    }
    Thread.detachNewThread { [weak self] in
      while true {
        let client = accept(listener, nil, nil)
        guard client >= 0, let server = self else { return }
        Thread.detachNewThread {
          ScriptedClient(descriptor: client, server: server).run()
          close(client)
        }
      }
    }
  }

  deinit {
    shutdown(listener, Int32(SHUT_RDWR))
    close(listener)
  }

  /// All bytes of the disk.
  var contents: [UInt8] { lock.withLock { disk } }

  fileprivate func read(_ range: Range<Int>) -> [UInt8] { lock.withLock { Array(disk[range]) } }

  fileprivate func write(_ start: Int, _ data: [UInt8]) {
    lock.withLock {
      let end = min(start + data.count, disk.count)
      disk.replaceSubrange(start..<end, with: data.prefix(end - start))
    }
  }
}

/// One connection of the scripted server.
private final class ScriptedClient {
  let descriptor: Int32
  let server: ScriptedServer
  var isStructured = false
  var hasContext = false
  var sendsZeroes = true
  var readCount = 0

  init(descriptor: Int32, server: ScriptedServer) {
    self.descriptor = descriptor
    self.server = server
  }

  var fault: Fault { server.fault }
  var size: UInt64 { UInt64(ScriptedServer.byteCount) }

  var flags: UInt16 {
    var flags: UInt16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8
    if isStructured || fault == .flagDFWithoutStructured { flags |= 1 << 7 }
    if fault == .reservedFlag { flags |= 1 << 14 }
    return flags
  }

  func receive(_ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let got = bytes.withUnsafeMutableBytes { buffer in
        recv(descriptor, buffer.baseAddress! + done, count - done, 0)
      }
      guard got > 0 else { return nil }
      done += got
    }
    return bytes
  }

  func send(_ bytes: [UInt8]) {
    var done = 0
    while done < bytes.count {
      let sent = bytes.withUnsafeBytes { buffer in
        Glibc.send(
          descriptor, buffer.baseAddress! + done, bytes.count - done, Int32(MSG_NOSIGNAL))
      }
      guard sent > 0 else { return }
      done += sent
    }
  }

  func integer(_ bytes: some Collection<UInt8>) -> UInt64 {
    bytes.reduce(0) { $0 << 8 | UInt64($1) }
  }

  func run() {
    send(Array((fault == .greetingMagic ? "NBDMAGIX" : "NBDMAGIC").utf8))
    send(Array("IHAVEOPT".utf8) + wire(fault == .greetingFlag ? UInt16(0x8003) : UInt16(3)))
    guard let answer = receive(4) else { return }
    let flags = integer(answer)
    guard flags & ~3 == 0 || fault == .keepsUnknownClientFlag else { return }
    sendsZeroes = flags & 2 == 0
    while let header = receive(16) {
      guard Array(header[..<8]) == Array("IHAVEOPT".utf8) else { return }
      let number = UInt32(integer(header[8..<12]))
      let count = integer(header[12...])
      guard count <= 1 << 20, flags & 1 == 1 || number == 1 else { return }
      if fault == .forgetsOptionData && number > 11 {
        reply(number, OptionAnswer.unsup)
        continue
      }
      guard let data = receive(Int(count)) else { return }
      guard take(option: number, data) else { return }
    }
  }

  func reply(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) {
    let magic = fault == .garbageOptionReply && option == 3 ? 0x1234 : 0x0003_e889_0455_65a9
    send(wire(UInt64(magic), option, type) + counted(data))
  }

  /// Answers an option; false when the connection ends.
  func take(option: UInt32, _ data: [UInt8]) -> Bool {
    switch option {
    case 1:
      guard ["", "disk"].contains(String(decoding: data, as: UTF8.self)) else { return false }
      let told = fault == .differentSizeByName ? size - 512 : size
      send(wire(told, flags) + (sendsZeroes ? [UInt8](repeating: 0, count: 124) : []))
      transmit()
      return false
    case 2:
      reply(2, OptionAnswer.ack)
      return false
    case 3: list(data)
    case 5: reply(5, OptionAnswer.policy)
    case 6, 7: return info(option, data)
    case 8:
      isStructured = data.isEmpty || isStructured
      reply(8, data.isEmpty ? OptionAnswer.ack : OptionAnswer.invalid)
    case 9, 10: meta(option, data)
    default:
      if fault == .hangsOnUnknownOption {
        _ = receive(1 << 20)
        return false
      }
      if fault == .closesOnUnknownOption { return false }
      reply(option, OptionAnswer.unsup)
    }
    return true
  }

  func list(_ data: [UInt8]) {
    guard data.isEmpty else { return reply(3, OptionAnswer.invalid) }
    let count = fault == .overlongDescription ? 5000 : 4
    reply(3, OptionAnswer.server, counted("disk") + [UInt8](repeating: 0x61, count: count))
    reply(3, OptionAnswer.ack)
  }

  func info(_ option: UInt32, _ data: [UInt8]) -> Bool {
    guard data.count >= 6, integer(data[..<4]) + 6 <= UInt64(data.count) else {
      reply(option, OptionAnswer.invalid)
      return true
    }
    let nameEnd = 4 + Int(integer(data[..<4]))
    let count = Int(integer(data[nameEnd..<nameEnd + 2]))
    let isWhole = nameEnd + 2 + 2 * count == data.count
    guard isWhole || fault == .acceptsTrailingJunk else {
      reply(option, OptionAnswer.invalid)
      return true
    }
    guard ["", "disk"].contains(String(decoding: data[4..<nameEnd], as: UTF8.self)) else {
      reply(option, OptionAnswer.unknown)
      return true
    }
    reply(option, OptionAnswer.info, wire(UInt16(0), size, flags))
    let minimum: UInt32 = fault == .badBlockSize ? 3 : 1
    reply(option, OptionAnswer.info, wire(UInt16(3), minimum, UInt32(4096), UInt32(32 << 20)))
    reply(option, OptionAnswer.ack)
    guard option == 7 else { return true }
    if fault == .paddingAfterGo { send([UInt8](repeating: 0, count: 124)) }
    transmit()
    return false
  }

  func meta(_ option: UInt32, _ data: [UInt8]) {
    if option == 10 { hasContext = false }
    guard isStructured || option == 9 else { return reply(option, OptionAnswer.invalid) }
    var reader = WireReader(data)
    var queries: [String] = []
    do {
      let name = try reader.take(Int(try reader.integer(UInt32.self)))
      let count = Int(try reader.integer(UInt32.self))
      for _ in 0..<count {
        let length = Int(try reader.integer(UInt32.self))
        queries.append(String(decoding: try reader.take(length), as: UTF8.self))
      }
      guard reader.remainingCount == 0 else { return reply(option, OptionAnswer.invalid) }
      guard ["", "disk"].contains(String(decoding: name, as: UTF8.self)) else {
        return reply(option, OptionAnswer.unknown)
      }
    } catch {
      let isLenient = fault == .acceptsQueryOverrun
      return reply(option, isLenient ? OptionAnswer.ack : OptionAnswer.invalid)
    }
    let isListed = option == 9 && (queries.isEmpty || queries.contains("base:"))
    guard isListed || queries.contains("base:allocation") else {
      return reply(option, OptionAnswer.ack)
    }
    if option == 10 { hasContext = true }
    let isTwice = fault == .contextTwice && queries.count > 1
    for _ in 0..<(isTwice ? 2 : 1) {
      reply(
        option, OptionAnswer.metaContext,
        wire(UInt32(option == 10 ? 7 : 0)) + Array("base:allocation".utf8))
    }
    reply(option, OptionAnswer.ack)
  }
}

extension ScriptedClient {
  struct Header {
    let flags: UInt16
    let command: UInt16
    let cookie: UInt64
    let offset: UInt64
    let length: UInt64
  }

  func transmit() {
    while let bytes = receive(28) {
      guard integer(bytes[..<4]) == 0x2560_9513 else { return }
      let header = Header(
        flags: UInt16(integer(bytes[4..<6])), command: UInt16(integer(bytes[6..<8])),
        cookie: integer(bytes[8..<16]), offset: integer(bytes[16..<24]),
        length: integer(bytes[24...]))
      var payload: [UInt8] = []
      if header.command == 1 {
        guard header.length <= 64 << 20 else { return }
        let isLost = fault == .losesPayload && header.flags & ~1 != 0
        if !isLost {
          guard let data = receive(Int(header.length)) else { return }
          payload = data
        }
      }
      guard answer(header, payload) else { return }
    }
  }

  func done(_ header: Header, _ error: UInt32) {
    let cookie = fault == .otherCookie ? header.cookie ^ 1 : header.cookie
    guard isStructured else { return send(wire(UInt32(0x6744_6698), error, cookie)) }
    if error == 0 {
      chunk(header, 0, [])
    } else {
      chunk(header, 0x8001, wire(error, UInt16(0)))
    }
  }

  func chunk(_ header: Header, _ type: UInt16, _ payload: [UInt8], isDone: Bool = true) {
    let cookie = fault == .otherCookie ? header.cookie ^ 1 : header.cookie
    send(
      wire(UInt32(0x668e_33ef), UInt16(isDone ? 1 : 0), type, cookie, UInt32(payload.count))
        + payload)
  }

  /// The flags that a command may have here.
  func knows(_ flags: UInt16, of command: UInt16) -> Bool {
    switch command {
    case 0: flags & ~(isStructured ? 5 : 1) == 0
    case 6: flags & ~3 == 0
    case 7: flags & ~9 == 0
    default: flags & ~1 == 0
    }
  }

  /// Answers a request; false when the connection ends.
  func answer(_ header: Header, _ payload: [UInt8]) -> Bool {
    if header.command == 2 {
      if fault == .answersDISC { done(header, 0) }
      if fault == .hangsAtDISC { _ = receive(1) }
      return false
    }
    guard header.command <= 7, header.command != 5, knows(header.flags, of: header.command) else {
      done(header, 22)
      return true
    }
    let (end, isOverflow) = header.offset.addingReportingOverflow(header.length)
    let isInside = !isOverflow && end <= size
    let start = isInside ? Int(header.offset) : 0
    let count = isInside ? Int(header.length) : 0
    switch header.command {
    case 0:
      if isInside { return read(header, start..<start + count) }
      if fault == .readPastEndEnds { return false }
      if fault == .acceptsReadPastEnd, header.length < 1 << 20, header.offset < 1 << 32 {
        return read(header, 0..<Int(header.length))
      }
      done(header, 22)
    case 1:
      if isInside { server.write(start, payload) }
      done(header, isInside ? 0 : fault == .wrongWriteErrno ? 5 : 28)
    case 3: done(header, header.offset == 0 && header.length == 0 ? 0 : 22)
    case 4:
      if isInside && fault == .trimsTooMuch {
        server.write(max(start - 100, 0), [UInt8](repeating: 0, count: 100))
      }
      done(header, isInside ? 0 : 22)
    case 6:
      let extra = fault == .zeroesTooMuch && count > 0 ? 1 : 0
      if isInside { server.write(start, [UInt8](repeating: 0, count: count + extra)) }
      done(header, isInside ? 0 : 28)
    default:
      guard isStructured, hasContext, isInside, count > 0 else {
        done(header, 22)
        return true
      }
      let isOne = header.flags & 8 != 0
      let length = fault == .statusTooLong && isOne ? UInt32(count) + 512 : UInt32(count)
      chunk(header, 5, wire(UInt32(7), length, UInt32(0)))
    }
    return true
  }

  /// Answers a READ; false when the connection ends.
  func read(_ header: Header, _ range: Range<Int>) -> Bool {
    var data = server.read(range)
    readCount += 1
    if fault == .otherBytesOnSecondRead && isStructured && !data.isEmpty { data[0] ^= 0xff }
    guard isStructured, fault != .simpleReplyToStructuredRead else {
      let cookie = fault == .otherCookie ? header.cookie ^ 1 : header.cookie
      send(wire(UInt32(0x6744_6698), UInt32(0), cookie))
      guard fault == .shortData, data.count > 1 else {
        send(data)
        return true
      }
      send(Array(data.dropLast()))
      return false
    }
    if data.isEmpty {
      chunk(header, 0, [])
    } else if fault == .shortData {
      chunk(header, 1, wire(header.offset) + data.dropLast())
    } else if fault == .overlappingChunks {
      chunk(header, 1, wire(header.offset) + data, isDone: false)
      chunk(header, 1, wire(header.offset) + data.prefix(1))
    } else {
      chunk(header, 1, wire(header.offset) + data)
    }
    return true
  }
}

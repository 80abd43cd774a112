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
  // Extended headers
  case oddAnswerToExtended
  case acceptsExtendedData
  case structuredWinsOverExtended
  case secondExtendedResets
  case structuredAfterExtended
  case noMetaWithoutStructured
  case payloadFlagWithoutContext
  case otherOffsetInChunk
  case simpleErrorsInExtended
  case dropsExtendedWrites
  case compactStatusInExtended
  case upperStatusBits
  case otherStatusInExtended
  case hangsWithoutPayloadFlag
  case leavesPayloadOfOthers
  case waitsForHugePayload
  case takesCompactRequests
  case cutsReadLengths
  case cutsLengths
  case refusesLongStatus
  case ignoresStatusPayload
  case acceptsUnknownContextIDs
  // TLS
  case offersTLS
  case acceptsSecondStartTLS
  case keepsStateOverTLS
  case acceptsStartTLSData
  case refusesAbortBeforeTLS
  case obeysPlainTextBehindStartTLS

  /// Those of a server with TLS, which forces it.
  var hasTLS: Bool {
    switch self {
    case .offersTLS, .acceptsSecondStartTLS, .keepsStateOverTLS, .acceptsStartTLSData,
      .refusesAbortBeforeTLS, .obeysPlainTextBehindStartTLS:
      true
    default: false
    }
  }
}

/// Serves 4 MiB under the name "disk", and as the default export.
final class ScriptedServer: @unchecked Sendable {  // the disk has a lock; the rest is fixed
  static let byteCount = 4 << 20

  let path: String
  private let folder: TemporaryFolder
  private let listener: Int32
  let fault: Fault
  private let lock = NSLock()
  private var disk: [UInt8]
  /// Behind `disk`, the bytes that are not zero.
  private var far: [UInt64: UInt8] = [:]
  fileprivate let size: UInt64

  /// - Parameter size: of the export, which is zero behind the first 4 MiB.
  init(_ fault: Fault, size: UInt64 = UInt64(ScriptedServer.byteCount)) throws {
    self.fault = fault
    self.size = size
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

  fileprivate func read(_ range: Range<Int>) -> [UInt8] {
    lock.withLock {
      if range.upperBound <= disk.count { return Array(disk[range]) }
      return range.map { $0 < disk.count ? disk[$0] : far[UInt64($0)] ?? 0 }
    }
  }

  fileprivate func write(_ start: Int, _ data: [UInt8]) {
    lock.withLock {
      for (index, byte) in data.enumerated() where start + index < size {
        let place = start + index
        if place < disk.count { disk[place] = byte } else { far[UInt64(place)] = byte }
      }
    }
  }

  fileprivate func zero(_ start: Int, _ count: Int) {
    let near = min(max(disk.count - start, 0), count)
    if near > 0 { write(start, [UInt8](repeating: 0, count: near)) }
    lock.withLock {
      far = far.filter { !(UInt64(start)..<UInt64(start + count)).contains($0.key) }
    }
  }
}

/// One connection of the scripted server.
private final class ScriptedClient {
  let descriptor: Int32
  let server: ScriptedServer
  var isStructured = false
  var isExtended = false
  var hasContext = false
  var tls: TLSSide?
  var sendsZeroes = true
  var readCount = 0

  init(descriptor: Int32, server: ScriptedServer) {
    self.descriptor = descriptor
    self.server = server
  }

  var fault: Fault { server.fault }
  var size: UInt64 { server.size }

  var flags: UInt16 {
    var flags: UInt16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8
    if isStructured || isExtended || fault == .flagDFWithoutStructured { flags |= 1 << 7 }
    if isExtended && (hasContext || fault == .payloadFlagWithoutContext) { flags |= 1 << 12 }
    if fault == .reservedFlag { flags |= 1 << 14 }
    return flags
  }

  func receive(_ count: Int) -> [UInt8]? {
    if let tls {
      do { return try tls.receive(count) } catch { return nil }
    }
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
    if let tls {
      do { try tls.send(bytes) } catch {}
      return
    }
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
    if fault.hasTLS && tls == nil { return takeBeforeTLS(option, data) }
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
    case 5:
      let isTaken = fault == .acceptsSecondStartTLS
      reply(
        5, tls == nil ? OptionAnswer.policy : isTaken ? OptionAnswer.ack : OptionAnswer.invalid)
    case 6, 7: return info(option, data)
    case 8:
      if isExtended && fault != .structuredAfterExtended {
        reply(8, OptionAnswer.extendedHeadersRequired)
        break
      }
      isStructured = data.isEmpty || isStructured
      reply(8, data.isEmpty ? OptionAnswer.ack : OptionAnswer.invalid)
    case 11: extend(data)
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

  /// Everything but STARTTLS and ABORT is refused in clear.
  private func takeBeforeTLS(_ option: UInt32, _ data: [UInt8]) -> Bool {
    switch option {
    case 1: return false
    case 2:
      reply(2, fault == .refusesAbortBeforeTLS ? OptionAnswer.tlsRequired : OptionAnswer.ack)
      return false
    case 5:
      guard data.isEmpty || fault == .acceptsStartTLSData else {
        reply(5, OptionAnswer.invalid)
        return true
      }
      reply(5, OptionAnswer.ack)
      if fault == .obeysPlainTextBehindStartTLS {
        // What lies in the socket now came in clear.
        var byte: UInt8 = 0
        if recv(descriptor, &byte, 1, Int32(MSG_PEEK)) == 1, byte == UInt8(ascii: "I") {
          return true
        }
      }
      do { tls = try TLSSide(descriptor, LintedKeys.proof) } catch { return false }
      if fault != .keepsStateOverTLS {
        (isStructured, isExtended, hasContext) = (false, false, false)
      }
    case 8 where fault == .keepsStateOverTLS:
      isStructured = true
      reply(8, OptionAnswer.ack)
    default: reply(option, OptionAnswer.tlsRequired)
    }
    return true
  }

  private func extend(_ data: [UInt8]) {
    if fault == .oddAnswerToExtended { return reply(11, OptionAnswer.unknown) }
    guard data.isEmpty || fault == .acceptsExtendedData else {
      return reply(11, OptionAnswer.invalid)
    }
    isExtended = !(fault == .secondExtendedResets && isExtended)
    if fault == .structuredWinsOverExtended && isStructured { isExtended = false }
    reply(11, OptionAnswer.ack)
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
    let isAllowed = isStructured || (isExtended && fault != .noMetaWithoutStructured)
    guard isAllowed || option == 9 else { return reply(option, OptionAnswer.invalid) }
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
    var flags: UInt16
    let command: UInt16
    let cookie: UInt64
    let offset: UInt64
    var length: UInt64
    /// Of BLOCK_STATUS: the ids of contexts.
    var hasPayload = false
  }

  func transmit() {
    while let bytes = receive(isExtended ? 32 : 28) {
      let isCompact = integer(bytes[..<4]) == 0x2560_9513
      let isTaken = isCompact && (!isExtended || fault == .takesCompactRequests)
      guard isTaken || isExtended && integer(bytes[..<4]) == 0x21e4_1c71 else { return }
      var header = Header(
        flags: UInt16(integer(bytes[4..<6])), command: UInt16(integer(bytes[6..<8])),
        cookie: integer(bytes[8..<16]), offset: integer(bytes[16..<24]),
        length: isCompact ? integer(bytes[24..<28]) : integer(bytes[24...]))
      var payload: [UInt8] = []
      if isExtended {
        guard let data = takePayload(&header) else { return }
        payload = data
        if fault == .dropsExtendedWrites && header.command == 1 {
          done(header, 0)
          continue
        }
      } else if header.command == 1 {
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

  /// Takes the payload of an extended request; nil when the connection ends. Afterwards the flag
  /// is set only where it is wrong.
  private func takePayload(_ header: inout Header) -> [UInt8]? {
    let isFlagged = header.flags & 32 != 0
    let isWrite = header.command == 1
    guard isFlagged || isWrite else { return [] }
    if isWrite && !isFlagged && fault == .hangsWithoutPayloadFlag { _ = receive(1 << 20) }
    guard header.length <= 64 << 20 || fault == .waitsForHugePayload else { return nil }
    if fault == .leavesPayloadOfOthers && !isWrite && header.command != 7 { return [] }
    guard let data = receive(Int(min(header.length, 1 << 30))) else { return nil }
    if isWrite || header.command == 7 { header.flags &= ~32 }
    header.hasPayload = isFlagged && header.command == 7
    return data
  }

  func done(_ header: Header, _ error: UInt32) {
    let cookie = fault == .otherCookie ? header.cookie ^ 1 : header.cookie
    if fault == .simpleErrorsInExtended && isExtended && error != 0 {
      return send(wire(UInt32(0x6744_6698), error, cookie))
    }
    guard isStructured || isExtended else { return send(wire(UInt32(0x6744_6698), error, cookie)) }
    if error == 0 {
      chunk(header, 0, [])
    } else {
      chunk(header, 0x8001, wire(error, UInt16(0)))
    }
  }

  func chunk(_ header: Header, _ type: UInt16, _ payload: [UInt8], isDone: Bool = true) {
    let cookie = fault == .otherCookie ? header.cookie ^ 1 : header.cookie
    if isExtended {
      let offset = fault == .otherOffsetInChunk ? header.offset ^ 1 : header.offset
      return send(
        wire(UInt32(0x6e8a_278c), UInt16(isDone ? 1 : 0), type, cookie, offset)
          + wire(UInt64(payload.count)) + payload)
    }
    send(
      wire(UInt32(0x668e_33ef), UInt16(isDone ? 1 : 0), type, cookie, UInt32(payload.count))
        + payload)
  }

  /// The flags that a command may have here.
  func knows(_ flags: UInt16, of command: UInt16) -> Bool {
    switch command {
    case 0: flags & ~(isStructured || isExtended ? 5 : 1) == 0
    case 6: flags & ~3 == 0
    case 7: flags & ~9 == 0
    default: flags & ~1 == 0
    }
  }

  /// Answers a request; false when the connection ends.
  func answer(_ given: Header, _ payload: [UInt8]) -> Bool {
    var header = given
    if fault == .cutsLengths || (fault == .cutsReadLengths && header.command == 0) {
      header.length &= UInt64(UInt32.max)
    }
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
      if isInside && header.length <= 64 << 20 { return read(header, start..<start + count) }
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
      if isInside { server.zero(start, count + extra) }
      done(header, isInside ? 0 : 28)
    default:
      status(header, payload)
    }
    return true
  }

  private func status(_ header: Header, _ payload: [UInt8]) {
    var length = header.length
    if header.hasPayload {
      let ids = stride(from: 8, to: payload.count, by: 4).map { integer(payload[$0..<$0 + 4]) }
      let isGood = ids == [7] || fault == .acceptsUnknownContextIDs
      guard payload.count >= 12, isGood else { return done(header, 22) }
      length = integer(payload[..<8])
      // It has one context, so that a second one has to be invented.
      if fault == .ignoresStatusPayload { sendExtents(header, 8, [(length, 0)], isDone: false) }
    }
    guard isStructured || isExtended, hasContext, length > 0, header.offset < size,
      length <= size - header.offset
    else { return done(header, 22) }
    if fault == .refusesLongStatus && length > UInt64(UInt32.max) { return done(header, 22) }
    let isOne = header.flags & 8 != 0
    if fault == .statusTooLong && isOne { length += 512 }
    var told = [(length, UInt64(0))]
    let near = UInt64(ScriptedServer.byteCount)
    if header.offset >= near {
      told = [(length, 3)]
    } else if header.offset + length > near && fault != .statusTooLong {
      told = [(near - header.offset, 0)]
      if !isOne { told.append((header.offset + length - near, 3)) }
    }
    if fault == .otherStatusInExtended && isExtended { told[0].1 ^= 1 }
    if fault == .upperStatusBits { told[0].1 |= 1 << 40 }
    sendExtents(header, 7, told)
  }

  private func sendExtents(
    _ header: Header, _ id: UInt32, _ extents: [(UInt64, UInt64)], isDone: Bool = true
  ) {
    if isExtended && fault != .compactStatusInExtended {
      let list = extents.flatMap { wire($0.0, $0.1) }
      return chunk(header, 6, wire(id, UInt32(extents.count)) + list, isDone: isDone)
    }
    let list = extents.flatMap {
      wire(UInt32(clamping: $0.0), UInt32(truncatingIfNeeded: $0.1))
    }
    chunk(header, 5, wire(id) + list, isDone: isDone)
  }

  /// Answers a READ; false when the connection ends.
  func read(_ header: Header, _ range: Range<Int>) -> Bool {
    var data = server.read(range)
    readCount += 1
    if fault == .otherBytesOnSecondRead && isStructured && !data.isEmpty { data[0] ^= 0xff }
    guard isStructured || isExtended, fault != .simpleReplyToStructuredRead else {
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

// SPDX-License-Identifier: Apache-2.0
//
// The chunks of structured and extended replies, and the checks that each of them passes.
// Spec: proto.md, "Structured reply types"; the draft of extended headers,
// "NBD_REPLY_TYPE_BLOCK_STATUS_EXT". This file performs no I/O.

import BlockTypes

extension ReplyDecoder {
  /// Acts on a complete chunk header: decides whether its payload is worth taking.
  mutating func acceptChunkHeader() throws(ClientViolation) {
    let header = takeGathered()
    stage = .header
    let flags = header.loadBigEndian(UInt16.self, at: 4)
    let isExtended = mode == .extended
    let chunk = Chunk(
      isDone: flags & StructuredReply.doneFlag != 0,
      type: header.loadBigEndian(UInt16.self, at: 6),
      cookie: header.loadBigEndian(UInt64.self, at: 8),
      payloadByteCount: isExtended
        ? header.loadBigEndian(UInt64.self, at: 24)
        : UInt64(header.loadBigEndian(UInt32.self, at: 16)))
    guard flags & ~StructuredReply.doneFlag == 0 else { throw .unknownChunkFlags(flags) }
    guard let entry = pending[chunk.cookie] else {
      guard takeFurtherError(chunk) else { throw .unknownCookie(chunk.cookie) }
      stage = .dropped(byteCount: Int(chunk.payloadByteCount))
      return
    }
    if isExtended {
      let answered = header.loadBigEndian(UInt64.self, at: 16)
      guard answered == entry.request.offset else {
        throw .echoedOffset(sent: entry.request.offset, answered: answered)
      }
    }
    try check(chunk, for: entry)
    if chunk.payloadByteCount == 0 { return try accept(chunk, []) }
    if chunk.type == StructuredReply.ChunkType.offsetData.rawValue {
      stage = .dataOffset(chunk)
    } else {
      stage = .payload(chunk)
    }
  }

  /// Whether a chunk of this type and length can answer the request.
  private func check(_ chunk: Chunk, for entry: Pending) throws(ClientViolation) {
    let byteCount = chunk.payloadByteCount
    let lengthFits: Bool
    switch StructuredReply.ChunkType(rawValue: chunk.type) {
    // Types with bit 15 are errors, known or not.
    case nil where chunk.type & 0x8000 != 0:
      lengthFits = (6...Self.unknownErrorByteCountMax).contains(byteCount)
    case .blockStatusExt:
      guard mode == .extended else { throw .unknownChunkType(chunk.type) }
      try require(.blockStatus, chunk, entry)
      lengthFits =
        byteCount >= 24 && (byteCount - 8) % 16 == 0
        && (byteCount - 8) / 16 <= UInt64(Self.extentsMax)
    case nil: throw .unknownChunkType(chunk.type)
    case .none?:
      guard chunk.isDone else { throw .noneWithoutDone(cookie: chunk.cookie) }
      lengthFits = byteCount == 0
    case .offsetData:
      try require(.read, chunk, entry)
      // The request's length bounds the memory, whatever the header says.
      lengthFits = byteCount >= 9 && byteCount - 8 <= entry.request.length
    case .offsetHole:
      try require(.read, chunk, entry)
      lengthFits = byteCount == 12
    case .blockStatus:
      guard mode == .structured else { throw .unknownChunkType(chunk.type) }
      try require(.blockStatus, chunk, entry)
      lengthFits =
        byteCount >= 12 && (byteCount - 4) % 8 == 0
        && (byteCount - 4) / 8 <= UInt64(Self.extentsMax)
    case .error: lengthFits = (6...UInt64(6 + ExportName.byteCountMax)).contains(byteCount)
    case .errorOffset:
      try require(.read, chunk, entry)
      lengthFits = (14...UInt64(14 + ExportName.byteCountMax)).contains(byteCount)
    }
    guard lengthFits else { throw .badChunkLength(type: chunk.type, byteCount: byteCount) }
  }

  private func require(
    _ command: Command, _ chunk: Chunk, _ entry: Pending
  ) throws(ClientViolation) {
    guard entry.request.command == command.rawValue else {
      throw .chunkOfOtherCommand(type: chunk.type, command: entry.request.command)
    }
  }

  /// Acts on a complete chunk but OFFSET_DATA.
  mutating func accept(_ chunk: Chunk, _ payload: [UInt8]) throws(ClientViolation) {
    switch StructuredReply.ChunkType(rawValue: chunk.type) {
    case .none?: break
    case .offsetData: preconditionFailure("the data of a READ was gathered")
    case .offsetHole: try acceptHole(chunk, payload)
    case .blockStatus: try acceptExtents(chunk, payload, isExtended: false)
    case .blockStatusExt:
      try acceptExtents(chunk, payload, isExtended: true)
    case .error, .errorOffset, nil: try acceptError(chunk, payload)
    }
    if chunk.isDone { try finish(chunk.cookie) }
  }

  /// The first 8 bytes of an OFFSET_DATA chunk are here; its data follow.
  mutating func acceptDataOffset(_ chunk: Chunk) throws(ClientViolation) {
    let offset = takeGathered().loadBigEndian(UInt64.self, at: 0)
    let byteCount = chunk.payloadByteCount - 8
    let index = try cover(offset, byteCount, chunk)
    stage = .data(
      cookie: chunk.cookie, index: index, left: Int(byteCount), isDone: chunk.isDone)
  }

  private mutating func acceptHole(
    _ chunk: Chunk, _ payload: [UInt8]
  ) throws(ClientViolation) {
    let byteCount = UInt64(payload.loadBigEndian(UInt32.self, at: 8))
    guard byteCount > 0 else { throw .badChunkLength(type: chunk.type, byteCount: 0) }
    let index = try cover(payload.loadBigEndian(UInt64.self, at: 0), byteCount, chunk)
    // A hole in a gap is there already, as zeroes.
    guard let count = pending[chunk.cookie]?.data.count, index + Int(byteCount) > count else {
      return
    }
    pending[chunk.cookie]?.data.append(
      contentsOf: repeatElement(0, count: index + Int(byteCount) - count))
  }

  /// Notes that a content chunk covers a part of a READ.
  ///
  /// - Returns: where the part begins within the request's bytes.
  /// - Throws: also for offsets near 2^64, which once made libnbd write before its buffer.
  private mutating func cover(
    _ offset: UInt64, _ byteCount: UInt64, _ chunk: Chunk
  ) throws(ClientViolation) -> Int {
    guard let entry = pending[chunk.cookie] else { throw .unknownCookie(chunk.cookie) }
    let whole = entry.range
    guard offset >= whole.start, offset <= whole.end, byteCount <= whole.end - offset else {
      throw .chunkOutsideRequest(cookie: chunk.cookie)
    }
    let flags = entry.request.flags
    guard entry.contentChunkCount == 0 || !flags.contains(.dontFragment) else {
      throw .moreThanOneContentChunk(cookie: chunk.cookie)
    }
    pending[chunk.cookie]?.contentChunkCount += 1
    let range = ByteRange(start: offset, end: offset + byteCount)
    // Optional chaining: the outer nil cannot be, the inner one means that all is well.
    switch pending[chunk.cookie]?.coverage.add(range) {
    case nil: break
    case .overlap: throw .overlappingChunks(cookie: chunk.cookie)
    case .tooScattered:
      throw .tooScatteredChunks(cookie: chunk.cookie, piecesMax: ReadCoverage.piecesMax)
    }
    return Int(offset - whole.start)
  }

  private mutating func acceptExtents(
    _ chunk: Chunk, _ payload: [UInt8], isExtended: Bool
  ) throws(ClientViolation) {
    guard let entry = pending[chunk.cookie] else { throw .unknownCookie(chunk.cookie) }
    let id = payload.loadBigEndian(UInt32.self, at: 0)
    guard contextIDs.contains(id) else { throw .unknownContext(id: id) }
    guard !entry.contexts.contains(where: { $0.contextID == id }) else {
      throw .repeatedContext(id: id)
    }
    let start = isExtended ? 8 : 4
    let width = isExtended ? 16 : 8
    let count = (payload.count - start) / width
    if isExtended {
      guard payload.loadBigEndian(UInt32.self, at: 4) == UInt32(count) else {
        throw .badChunkLength(type: chunk.type, byteCount: chunk.payloadByteCount)
      }
    }
    let requestsOne = entry.request.flags.contains(.requestOne)
    guard count == 1 || !requestsOne else { throw .tooManyExtents(cookie: chunk.cookie) }
    var extents: [StatusExtent] = []
    extents.reserveCapacity(count)
    var covered: UInt64 = 0
    for index in 0..<count {
      let at = start + index * width
      let extent =
        isExtended
        ? StatusExtent(
          byteCount: payload.loadBigEndian(UInt64.self, at: at),
          status: payload.loadBigEndian(UInt64.self, at: at + 8))
        : StatusExtent(
          byteCount: UInt64(payload.loadBigEndian(UInt32.self, at: at)),
          status: UInt64(payload.loadBigEndian(UInt32.self, at: at + 4)))
      guard extent.byteCount > 0 else { throw .emptyExtent(cookie: chunk.cookie) }
      // Only the last extent may pass the end of the request, and not where one was asked for.
      guard covered < entry.request.length,
        extent.byteCount <= UInt64(Int64.max),
        !requestsOne || extent.byteCount <= entry.request.length
      else { throw .extentOutsideRequest(cookie: chunk.cookie) }
      covered += extent.byteCount  // both below 2^63
      extents.append(extent)
    }
    pending[chunk.cookie]?.contexts.append(ContextExtents(contextID: id, extents: extents))
  }

  /// ERROR, ERROR_OFFSET and errors of other types: a number, a length and as much text; then,
  /// where the type says so, an offset.
  private mutating func acceptError(
    _ chunk: Chunk, _ payload: [UInt8]
  ) throws(ClientViolation) {
    guard let entry = pending[chunk.cookie] else { throw .unknownCookie(chunk.cookie) }
    let number = payload.loadBigEndian(UInt32.self, at: 0)
    guard number != 0 else { throw .errorWithoutNumber(cookie: chunk.cookie) }
    let textByteCount = Int(payload.loadBigEndian(UInt16.self, at: 4))
    let type = StructuredReply.ChunkType(rawValue: chunk.type)
    let fixedByteCount = type == .errorOffset ? 14 : 6
    let fits =
      type == nil
      ? textByteCount <= payload.count - 6 : textByteCount == payload.count - fixedByteCount
    guard fits else {
      throw .badChunkLength(type: chunk.type, byteCount: chunk.payloadByteCount)
    }
    var failure = ServerFailure(
      number: number, text: ExportName.shown(payload[6..<6 + textByteCount]))
    if type == .errorOffset {
      let offset = payload.loadBigEndian(UInt64.self, at: 6 + textByteCount)
      guard offset >= entry.range.start, offset < entry.range.end else {
        throw .chunkOutsideRequest(cookie: chunk.cookie)
      }
      guard entry.errorOffsetCount < Self.errorOffsetsMax else {
        throw .secondError(cookie: chunk.cookie)
      }
      pending[chunk.cookie]?.errorOffsetCount += 1
      failure.offset = offset
    } else {
      guard !entry.hasPlainError else { throw .secondError(cookie: chunk.cookie) }
      pending[chunk.cookie]?.hasPlainError = true
    }
    // The first error is the one that is told: later ones are often its consequences.
    if entry.failure == nil { pending[chunk.cookie]?.failure = failure }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The rules that chunks of a structured reply keep. Spec: proto.md, "Structured reply types".

extension WireOutcome {
  /// Takes the payload of one chunk.
  mutating func take(
    _ type: UInt16, _ payload: WireReader, of request: WireRequest, isDone: Bool,
    isExtended: Bool
  ) throws {
    var reader = payload
    switch type {
    case 0:
      guard isDone, reader.remainingCount == 0 else {
        throw WireError.violation("a bad NONE chunk")
      }
    case 1:
      let offset: UInt64 = try reader.integer()
      try cover(offset, reader.remainingCount, of: request)
      let start = Int(offset - request.offset)
      data.bytes.replaceSubrange(start..<start + reader.remainingCount, with: reader.rest())
    case 2:
      let offset: UInt64 = try reader.integer()
      let length: UInt32 = try reader.integer()
      try cover(offset, Int(length), of: request)
      holeByteCount += Int(length)
    case 5 where !isExtended:
      let id: UInt32 = try reader.integer()
      var list: [WireExtent] = []
      while reader.remainingCount > 0 {
        let length: UInt32 = try reader.integer()
        list.append(WireExtent(length: UInt64(length), flags: try reader.integer()))
      }
      try takeExtents(list, id, of: request)
    case 6 where isExtended:
      let id: UInt32 = try reader.integer()
      let count: UInt32 = try reader.integer()
      var list: [WireExtent] = []
      while reader.remainingCount > 0 {
        let length: UInt64 = try reader.integer()
        guard let flags = UInt32(exactly: try reader.integer(UInt64.self)) else {
          throw WireError.violation("a status of more than 32 bits")
        }
        list.append(WireExtent(length: length, flags: flags))
      }
      guard list.count == Int(count) else {
        throw WireError.violation("\(list.count) extents where \(count) were announced")
      }
      try takeExtents(list, id, of: request)
    case 0x8001, 0x8002: try takeError(type, &reader, of: request)
    default: throw WireError.violation("chunk type \(type)")
    }
    guard reader.remainingCount == 0 else {
      throw WireError.violation("chunk type \(type) has the wrong length")
    }
  }

  private mutating func cover(_ offset: UInt64, _ count: Int, of request: WireRequest) throws {
    contentChunkCount += 1
    guard request.command == WireCommand.read.rawValue, count > 0, offset >= request.offset,
      offset - request.offset + UInt64(count) <= request.length
    else { throw WireError.violation("content outside of its READ") }
    let range = offset..<offset + UInt64(count)
    guard !covered.contains(where: { $0.overlaps(range) }) else {
      throw WireError.violation("content chunks overlap")
    }
    covered.append(range)
  }

  private mutating func takeExtents(
    _ list: [WireExtent], _ id: UInt32, of request: WireRequest
  ) throws {
    guard request.command == WireCommand.blockStatus.rawValue, request.contextIDs.contains(id),
      extents[id] == nil, !list.isEmpty
    else { throw WireError.violation("a bad BLOCK_STATUS chunk") }
    extents[id] = list
    let isOne = request.flags & WireFlag.requestOne != 0
    guard list.allSatisfy({ $0.length > 0 }), !isOne || list.count == 1,
      !isOne || list[0].length <= request.length,
      list.dropLast().reduce(0, { $0 + $1.length }) < request.length
    else { throw WireError.violation("extents break the rules: \(list.prefix(4))") }
  }

  private mutating func takeError(
    _ type: UInt16, _ reader: inout WireReader, of request: WireRequest
  ) throws {
    let number: UInt32 = try reader.integer()
    _ = try reader.take(Int(try reader.integer(UInt16.self)))
    guard number != 0, WireErrno.all.contains(number) else {
      throw WireError.violation("errno \(number) in an error chunk")
    }
    if error == 0 { error = number }
    guard type == 0x8002 else { return }
    let offset: UInt64 = try reader.integer()
    guard offset >= request.offset, offset - request.offset < request.length else {
      throw WireError.violation("an error outside of its request")
    }
    errorOffsets.append(offset)
  }

  /// Checks a reply whose last chunk came.
  func checkEnd(of request: WireRequest) throws {
    if error != 0 { return }
    if request.command == WireCommand.read.rawValue {
      let byteCount = covered.reduce(0) { $0 + UInt64($1.count) }
      guard byteCount == request.length else {
        throw WireError.violation("\(byteCount) of \(request.length) bytes were sent")
      }
      guard request.flags & WireFlag.dontFragment == 0 || contentChunkCount <= 1 else {
        throw WireError.violation("\(contentChunkCount) content chunks with DF")
      }
    }
    if request.command == WireCommand.blockStatus.rawValue {
      guard extents.count == request.contextIDs.count else {
        throw WireError.violation(
          "\(extents.count) of \(request.contextIDs.count) contexts were told")
      }
    }
  }
}

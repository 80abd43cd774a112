// SPDX-License-Identifier: Apache-2.0
//
// A request and what became of it. Spec: proto.md, "Transmission phase", "Structured reply types".
// This file performs no I/O.

/// A request as it was sent.
struct Request: Hashable, Sendable {
  var command: UInt16
  var flags: UInt16
  var offset: UInt64
  var length: UInt64
}

/// One extent of a BLOCK_STATUS reply.
struct StatusExtent: Hashable, Sendable {
  var length: UInt64
  var status: UInt64
}

/// The whole reply to one request, judged chunk by chunk.
struct RequestOutcome: Sendable {
  var error: UInt32 = 0
  /// The data of a READ, holes filled with zeroes.
  var data: [UInt8] = []
  /// Extents by context id.
  var extents: [UInt32: [StatusExtent]] = [:]
  /// The style of its replies; nil before the first.
  var style: ReplyStyle?
  var chunkCount = 0
  var contentChunkCount = 0
  var errorOffsets: [UInt64] = []
  /// The text of an error, for reports.
  var message = ""
  /// Ranges of a READ that content chunks have covered.
  var covered: [Range<UInt64>] = []

  var errorName: String {
    Errno.name(error) + (message.isEmpty ? "" : " (\"\(message)\")")
  }

  /// Takes the payload of one chunk.
  mutating func take(
    _ type: UInt16, _ payload: [UInt8], of request: Request, isDone: Bool, style: ReplyStyle,
    contextIDs: some Collection<UInt32>
  ) throws(LintStop) {
    var reader = FieldReader(payload, of: "a chunk of type 0x\(String(type, radix: 16))")
    switch type {
    case 0: try demand(isDone, "a NONE chunk only at the end", got: "one that is not DONE")
    case 1:
      let offset = try reader.integer(UInt64.self)
      let count = reader.remainingCount
      let start = try cover(offset, count, of: request)
      // Room was made only for what a reply can hold.
      try demand(
        start + count <= data.count, "an error for a READ of \(request.length) bytes",
        got: "\(count) bytes of data")
      data.replaceSubrange(start..<start + count, with: reader.rest())
    case 2:
      let offset = try reader.integer(UInt64.self)
      let length = try reader.integer(UInt32.self)
      _ = try cover(offset, Int(length), of: request)
    case 5:
      try demand(style == .structured, "BLOCK_STATUS_EXT", got: "a compact BLOCK_STATUS chunk")
      try takeExtents(&reader, isExtended: false, of: request, contextIDs: contextIDs)
    case 6:
      try demand(style == .extended, "a compact BLOCK_STATUS chunk", got: "BLOCK_STATUS_EXT")
      try takeExtents(&reader, isExtended: true, of: request, contextIDs: contextIDs)
    case 0x8001, 0x8002: try takeError(type, &reader, of: request)
    default:
      throw .broken(
        expected: "a chunk type that was negotiated", got: "0x\(String(type, radix: 16))")
    }
    try demand(
      reader.remainingCount == 0, "\(reader.what) of its length",
      got: "\(reader.remainingCount) bytes more")
  }

  /// Judges a range of content and returns where it starts in the READ.
  private mutating func cover(
    _ offset: UInt64, _ count: Int, of request: Request
  ) throws(LintStop) -> Int {
    contentChunkCount += 1
    try demand(
      request.command == Command.read, "content only for READ", got: "it for \(request.command)")
    try demand(count > 0, "a content chunk that holds something", got: "an empty one")
    let isInside =
      offset >= request.offset && UInt64(count) <= request.length
      && offset - request.offset <= request.length - UInt64(count)
    try demand(
      isInside, "content inside \(request.length) bytes at \(request.offset)",
      got: "\(count) bytes at \(offset)")
    let range = offset..<offset + UInt64(count)
    try demand(
      !covered.contains { $0.overlaps(range) }, "content chunks that do not overlap",
      got: "\(count) bytes at \(offset) twice")
    covered.append(range)
    return Int(offset - request.offset)
  }

  private mutating func takeExtents(
    _ reader: inout FieldReader, isExtended: Bool, of request: Request,
    contextIDs: some Collection<UInt32>
  ) throws(LintStop) {
    let id = try reader.integer(UInt32.self)
    try demand(
      request.command == Command.blockStatus && contextIDs.contains(id),
      "the status of a context that was selected", got: "context id \(id)")
    try demand(extents[id] == nil, "one chunk for context id \(id)", got: "a second one")
    let unit = isExtended ? 16 : 8
    if isExtended {
      let count = try reader.integer(UInt32.self)
      try demand(
        Int(count) * unit == reader.remainingCount, "as many extents as the count says, \(count)",
        got: "\(reader.remainingCount) bytes")
    }
    try demand(
      reader.remainingCount > 0 && reader.remainingCount % unit == 0, "one or more whole extents",
      got: "\(reader.remainingCount) bytes")
    var list: [StatusExtent] = []
    while reader.remainingCount > 0 {
      let length = isExtended ? try reader.integer() : UInt64(try reader.integer(UInt32.self))
      let status = isExtended ? try reader.integer() : UInt64(try reader.integer(UInt32.self))
      list.append(StatusExtent(length: length, status: status))
    }
    extents[id] = list
    try RequestOutcome.judge(list, of: request)
  }

  private static func judge(_ list: [StatusExtent], of request: Request) throws(LintStop) {
    try demand(
      list.allSatisfy { $0.length > 0 }, "extents that are not empty", got: "one of length 0")
    if request.flags & CommandFlag.requestOne != 0 {
      try demand(
        list.count == 1 && list[0].length <= request.length,
        "one extent of at most \(request.length) bytes with REQ_ONE",
        got: "\(list.count), the first of \(list[0].length) bytes")
    }
    var sum: UInt64 = 0
    for extent in list.dropLast() {
      let (next, isOverflow) = sum.addingReportingOverflow(extent.length)
      try demand(
        !isOverflow && next < request.length, "all extents but the last inside the request",
        got: "\(list.count) extents beyond its \(request.length) bytes")
      sum = next
    }
  }

  private mutating func takeError(
    _ type: UInt16, _ reader: inout FieldReader, of request: Request
  ) throws(LintStop) {
    let number = try reader.integer(UInt32.self)
    let count = try reader.integer(UInt16.self)
    message = shown(try reader.take(Int(count)))
    try demand(number != 0, "an error number in an error chunk", got: "0")
    if error == 0 { error = number }
    guard type == 0x8002 else { return }
    let offset = try reader.integer(UInt64.self)
    try demand(
      offset >= request.offset && offset - request.offset < request.length,
      "an error offset inside the request", got: "\(offset)")
    errorOffsets.append(offset)
  }

  /// Judges a reply whose last chunk came.
  func demandWhole(of request: Request, contextCount: Int) throws(LintStop) {
    guard error == 0 else { return }
    if request.command == Command.read {
      let count = covered.reduce(0) { $0 + UInt64($1.count) }
      try demand(
        count == request.length, "all \(request.length) bytes of a READ", got: "\(count) bytes")
      try demand(
        request.flags & CommandFlag.dontFragment == 0 || contentChunkCount <= 1,
        "at most one content chunk with DF", got: "\(contentChunkCount)")
    }
    if request.command == Command.blockStatus {
      try demand(
        extents.count == contextCount, "one chunk for each of \(contextCount) contexts",
        got: "\(extents.count)")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// One request from its header to the last byte of its reply: plain data in a fixed table.
// Source: proto.md, "Transmission". This file performs no I/O.

import BlockTypes
import Compression
import LinuxIO
import NBDProtocol

/// Where a request stands. `ImageStack.advance` holds the transitions:
///
///     receiving ─► READ:   scanning ─► finished
///                  WRITE:  claiming ─► [readingHeadEdge ─► readingTailEdge] ─► placing
///                          placing ─► [makingTable …] ─► [allocating ─► fillingHead ─► fillingTail
///                                      ─► gathering ─► writingClusters ─► committing ─► placing]
///                          placing ─► [packing ─► placing ─► [placingPacked ─► writingClusters
///                                      ─► committing ─► placing]]
///                          placing ─► awaitingWrites ─► [awaitingFlush] ─► finished
///                  ZERO:   claiming ─► nextZeroPiece ─► (the WRITE stages | zeroingClusters) ─► …
///                          zeroingClusters ─► [provisioning ─► mappingZeroes ─► zeroingClusters]
///                  TRIM:   claiming ─► zeroingClusters ─► [awaitingFlush] ─► finished
///                  FLUSH:  awaitingFlush ─► finished
///                  STATUS: collectingStatus ─► finished
///                  RESIZE: resizing ─► [the stages of ZERO ─► resizing] ─► finished
///     EDIT:   standingStill ─► finished                         (control's own: Standstill.swift)
///     WRITE, ZERO and TRIM begin with [awaitingMarks] where a persistent bitmap records
///     any begins with [held] while the image stands still
///     any ─► unwinding ─► finished, once nothing is in flight for it
enum Stage: UInt8 {
  case free
  /// The payload of a WRITE is arriving.
  case receiving
  /// Not begun: the image stands still.
  case held
  /// Reading through the chain into the scan's buffer; goes on at `afterScan`.
  case scanning
  /// Waiting until the file marks the regions that are going to change (Persistence/).
  case awaitingMarks
  /// Waiting until no unaligned write shares a block with this one.
  case claiming
  case readingHeadEdge
  case readingTailEdge
  /// Finding the place of each byte of an aligned write.
  case placing
  case makingTable
  case writingTable
  case allocating
  /// Whole clusters are being compressed on the blocking pool.
  case packing
  /// Taking a place for clusters that are packed (Write+Packed.swift).
  case placingPacked
  case fillingHead
  case fillingTail
  /// What else is written to the new clusters comes along.
  case gathering
  case writingClusters
  case committing
  case awaitingWrites
  case nextZeroPiece
  case zeroingClusters
  /// Taking clusters, and space for them, that are to read as zeroes.
  case provisioning
  case mappingZeroes
  /// A call on the blocking pool does the work (space operations of raw files).
  case awaitingPool
  case collectingStatus
  case awaitingFlush
  case releasing
  /// Making the disk larger; `ResizeState.Step` tells how far it is.
  case resizing
  /// Changing what bitmaps the image keeps; `BitmapWork.Step` tells how far it is.
  case storingBitmaps
  /// Keeping the others still; `Standstill.Step` tells how far it is.
  case standingStill
  case unwinding
  /// The reply can be made.
  case finished
  /// The reply is being sent.
  case replying

  /// Whether a request at this stage may read or write at a place that it found before.
  var usesPlaces: Bool {
    switch self {
    case .free, .receiving, .held, .storingBitmaps, .standingStill, .finished, .replying: false
    case .scanning, .awaitingMarks, .claiming, .readingHeadEdge, .readingTailEdge, .placing,
      .makingTable, .writingTable, .allocating, .packing, .placingPacked, .fillingHead,
      .fillingTail, .gathering, .writingClusters, .committing, .awaitingWrites,
      .nextZeroPiece, .zeroingClusters, .provisioning, .mappingZeroes, .awaitingPool,
      .collectingStatus, .awaitingFlush, .releasing, .resizing, .unwinding:
      true
    }
  }
}

/// Reading a guest range through the chain into a buffer.
struct Scan {
  var cursor: UInt64 = 0
  var end: UInt64 = 0
  var buffer: IOBuffer = .empty
  /// The guest offset of the buffer's first byte.
  var bufferStart: UInt64 = 0

  /// Which 512-byte block the cursor is in, counted from the one that the buffer starts in.
  var block: UInt64 { cursor >> IOTag.blockBits - bufferStart >> IOTag.blockBits }
}

/// A run of zeroes in a READ that a structured reply can leave out.
struct HoleRun {
  var offset: UInt64 = 0
  var byteCount: UInt64 = 0
}

/// A run of guest clusters that a request is giving a place in the active layer.
struct ClusterAllocation {
  /// What a write to another part of the clusters may do (Write+Joining.swift).
  enum Step: UInt8 {
    /// Nothing: there is no place yet, or none for data.
    case taking
    /// Come along in the write of the clusters.
    case gathering
    /// Be written beside it.
    case writing
  }

  var step: Step = .taking
  /// Guest offset of the run; meaningful while `clusterCount > 0`.
  var guestStart: UInt64 = 0
  var clusterCount = 0
  /// The guest bytes that get their place, where that is not all of the clusters: the subclusters
  /// that the write touches (Write+Subclusters.swift).
  var placedStart: UInt64 = 0
  var placedEnd = UInt64.max
  var host: UInt64 = 0
  /// The host clusters have never been written, so they read as zeroes.
  var isFresh = false
  /// The clusters are packed: `host` is the place of the first one's bytes.
  var isPacked = false
  /// The clusters had a host place already (preallocated zero clusters), which stays theirs.
  var reusesHost = false
  var headFill: IOBuffer = .empty
  var tailFill: IOBuffer = .empty
  var headIsZero = false
  var tailIsZero = false
  /// One read brought all of the run, which `headFill` holds.
  var fillIsWhole = false
  /// The guest bytes that the write of the clusters covers, from step `writing` on.
  var written = ByteRange(start: 0, end: 0)
  /// Writes that end well when the clusters are mapped, and begin anew when they are not.
  var joiners = SlotList()
}

/// A compressed cluster on its way: packed bytes at the start of the buffer, plain ones behind.
struct PackedCluster {
  enum Step: UInt8 { case none, reading, unpacking }
  var step: Step = .none
  var buffer: IOBuffer = .empty
  /// Where the packed bytes start in the buffer, and where the plain ones do.
  var packedStart = 0
  var packedByteCount = 0
  var plainStart = 0
  /// The bytes of the cluster that the scan wants.
  var wantedStart = 0
  var wantedByteCount = 0
  var clusterByteCount = 0
  var codec = ClusterCodec.deflate
}

/// One request. Trivially copyable; it owns the buffers it names until it is retired.
struct RequestSlot {
  static let holesMax = 4  // the size of `holes`

  var stage: Stage = .free
  var afterScan: Stage = .finished
  var afterWrite: Stage = .finished
  var afterTable: Stage = .finished
  var command: Command = .read
  var flags: CommandFlags = []
  var error: BlockErrno = .none
  /// Where a READ failed first: all before it was read. At the end of the address space: unknown.
  var errorOffset = UInt64.max
  /// The connection that waits for the reply; -1 for the image's own work.
  var connection: Int32 = -1
  /// Link of the one list that this slot is in.
  var next: Int32 = -1
  var isInList = false
  /// Position in the dense lists of the image, or -1.
  var claimPosition: Int32 = -1
  var allocationPosition: Int32 = -1
  var cookie: UInt64 = 0
  var offset: UInt64 = 0
  var length: UInt64 = 0
  /// Orders requests by their start, for the clusters they may still touch.
  var sequence: UInt64 = 0

  /// The payload; the guest offset of its first byte is `bufferStart`.
  var buffer: IOBuffer = .empty
  var bufferStart: UInt64 = 0
  /// Bytes that count against the share of the connection.
  var chargedByteCount = 0
  /// Bytes of the payload that have arrived.
  var receivedByteCount: UInt64 = 0

  var scan = Scan()
  /// Operations in flight, each kind for the stage that waits for it.
  var readCount: Int32 = 0
  var writeCount: Int32 = 0
  var clusterWriteCount: Int32 = 0
  var tableWriteCount: Int32 = 0
  var poolCount: Int32 = 0
  /// What the last call on the pool returned.
  var poolValue: Int64 = 0
  var poolWasAsked = false

  /// The range being written, and how far its place is known.
  var writeStart: UInt64 = 0
  var writeEnd: UInt64 = 0
  var placeCursor: UInt64 = 0
  var placeEnd: UInt64 = 0
  var edges: IOBuffer = .empty
  var allocation = ClusterAllocation()
  /// A WRITE with FUA touched a mapping that is not durable yet.
  var needsFlush = false
  /// The image's own work asked for a flush, and waits for its end.
  var flushIsAsked = false
  /// The claimed range holds blocks that other requests share.
  var isSerialising = false

  /// Zeroing and trimming: how far it is done, and the whole clusters in it.
  var zeroCursor: UInt64 = 0
  var bodyStart: UInt64 = 0
  var bodyEnd: UInt64 = 0
  /// What follows a WRITE_ZEROES.
  var afterZero: Stage = .finished
  /// The L1 index and host cluster of the table being made.
  var tableIndex = 0
  var tableHost: UInt64 = 0
  var tableCopy: IOBuffer = .empty

  var packed = PackedCluster()
  var packedPayload = PackedPayload()

  var holes: [4 of HoleRun] = .init(repeating: HoleRun())
  var holeCount = 0
  /// Runs of zeroes may be sent as hole chunks.
  var wantsHoles = false
  var statusExtents = StatusExtents()

  /// Takes over what the client asks for. The payload of a WRITE is yet to arrive.
  mutating func begin(
    _ header: RequestHeader, _ command: Command, connection: Int, bufferStart: UInt64,
    chargedByteCount: Int
  ) {
    self.command = command
    self.connection = Int32(connection)
    self.bufferStart = bufferStart
    self.chargedByteCount = chargedByteCount
    flags = header.flags
    cookie = header.cookie
    offset = header.offset
    length = header.length
    stage = .receiving
  }

  /// Lets a change that would begin now wait for the marks of its regions.
  mutating func holdForMarks() {
    if stage == .claiming { stage = .awaitingMarks }
  }

  /// The part of the buffer that the payload has not filled yet.
  var payloadRest: DiskQueue.Piece {
    DiskQueue.Piece(
      buffer, Int(offset - bufferStart + receivedByteCount), Int(length - receivedByteCount))
  }

  /// What the reply repeats.
  var identity: RequestIdentity { RequestIdentity(cookie: cookie, offset: offset) }

  /// Bytes that a TRIM or WRITE_ZEROES has still before it.
  var unzeroedByteCount: UInt64 {
    let end = offset + length
    return zeroCursor < end ? end - zeroCursor : 0
  }

  /// A read of the disk failed that began in this block of the scan.
  mutating func noteFailedRead(block: UInt64) {
    guard command == .read else { return }
    let start = (bufferStart >> IOTag.blockBits + block) << IOTag.blockBits
    errorOffset = min(errorOffset, max(start, offset))
  }

  /// The request fails; if it was reading for the client, at the cursor.
  mutating func noteFailedScan() {
    guard command == .read, stage == .scanning else { return }
    errorOffset = min(errorOffset, max(scan.cursor, offset))
  }

  /// Extents of one context that a BLOCK_STATUS may tell.
  var extentsMax: Int { flags.contains(.requestOne) ? 1 : statusExtents.extentsMax }

  /// What a request changes on the disk; nil when it only looks.
  var changedRange: ByteRange? {
    switch command {
    case .write, .writeZeroes, .trim: return ByteRange(start: offset, end: offset + length)
    case .read, .disconnect, .flush, .cache, .blockStatus, .resize: return nil
    }
  }

  /// The request's range rounded out to the alignment of the chain.
  func alignedRange(_ alignment: UInt64) -> ByteRange {
    ByteRange(start: offset, end: offset + length).roundedOut(to: alignment)
  }

  var inFlightCount: Int32 {
    readCount + writeCount + clusterWriteCount + tableWriteCount + poolCount
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Writes of an export that compresses: whole clusters that need a place are packed on the blocking
// pool, several of them at a time, and then find their places (Write+Packed.swift). Clusters of
// zeroes become zero clusters, those that do not shrink and those that are written in part go the
// usual way, and so does what has a place of its own already. Decision: tools/decisions/0030.
// Spec: qcow2.rst, "Compressed Clusters Descriptor".

import BlockTypes
import Compression
import LinuxIO
import Qcow2

/// Whole clusters of a WRITE that were packed, one after the other: what each of them takes.
///
/// The payload does not change, so this holds however often a place is looked for.
struct PackedPayload {
  /// What a cluster of the payload is stored as.
  enum Form {
    case plain
    case zero
    case packed
  }

  /// The buffer starts with a word for each cluster: its packed bytes, `zeroWord` or `plainWord`.
  private static let headerByteCount = 512
  private static let clusterCountMax = headerByteCount / 8
  /// Bytes of the buffer, unless one cluster needs more: a call on the pool is to be short.
  private static let bufferByteCountMax = 256 << 10
  private static let zeroWord: UInt64 = 0
  private static let plainWord = UInt64.max

  /// Requests that may hold packed bytes at once: more than the pool has threads for, and few
  /// enough for their memory to be small beside that of payloads.
  static let requestsMax = 8

  var buffer: IOBuffer = .empty
  var guestStart: UInt64 = 0
  var clusterCount = 0

  /// How many of `clusterCount` clusters are packed at one time.
  static func batch(_ clusterCount: Int, _ clusterByteCount: Int) -> Int {
    let fitting = (bufferByteCountMax - headerByteCount) / clusterByteCount
    return min(clusterCount, max(fitting, 1), clusterCountMax)
  }

  /// Bytes of a buffer for that.
  static func bufferByteCount(_ clusterCount: Int, _ clusterByteCount: Int) -> Int {
    headerByteCount + clusterCount * clusterByteCount
  }

  /// Packs `clusterCount` clusters from `start` of `plain` on into `buffer`; for the pool.
  static func pack(
    _ plain: IOBuffer, _ start: Int, clusterCount: Int, clusterByteCount: Int,
    _ codec: ClusterCodec,
    mayForget: Bool, into buffer: IOBuffer
  ) {
    var end = headerByteCount
    for number in 0..<clusterCount {
      let word = plain.withSpan(start + number * clusterByteCount, clusterByteCount) { cluster in
        if mayForget, plain.isZero(start + number * clusterByteCount, clusterByteCount) {
          return zeroWord
        }
        return buffer.withMutableSpan(end, clusterByteCount) { room in
          switch codec.pack(cluster, into: &room) {
          case .packed(let byteCount): UInt64(byteCount)
          case .notSmaller, .failed: plainWord
          }
        }
      }
      buffer.storeWord(word, at: number * 8)
      if word != plainWord { end += Int(word) }
    }
  }

  /// The number of the cluster at `offset`; nil when it was not packed.
  func number(of offset: UInt64, _ clusterBits: Int) -> Int? {
    guard clusterCount > 0, offset >= guestStart else { return nil }
    let number = (offset - guestStart) >> UInt64(clusterBits)
    return number < UInt64(clusterCount) ? Int(number) : nil
  }

  func form(_ number: Int) -> Form {
    switch buffer.loadWord(at: number * 8) {
    case PackedPayload.zeroWord: .zero
    case PackedPayload.plainWord: .plain
    default: .packed
    }
  }

  /// How many clusters from `number` on have one form, at most `limit`.
  func run(from number: Int, limit: Int) -> Int {
    let form = form(number)
    var count = 1
    while count < limit, number + count < clusterCount, self.form(number + count) == form {
      count += 1
    }
    return count
  }

  /// Bytes that cluster `number`, which is packed, takes.
  func byteCount(_ number: Int) -> Int { Int(buffer.loadWord(at: number * 8)) }

  /// Where its bytes start in the buffer.
  func start(_ number: Int) -> Int {
    var start = PackedPayload.headerByteCount
    for other in 0..<number where form(other) == .packed { start += byteCount(other) }
    return start
  }
}

extension ImageStack {
  /// What becomes of a run of clusters that need a place.
  enum Packing {
    /// So many of them are written as they are.
    case plain(clusterCount: Int)
    /// They are dealt with; the request goes on like this.
    case moved(Progress)
  }

  /// Packs the first of `clusterCount` clusters from the cursor's on, or gives them what their
  /// packed bytes call for.
  mutating func packNext(_ index: Int, _ clusterCount: Int) -> Packing {
    // Zeroes that a WRITE_ZEROES writes are to have space.
    guard requests.slots[index].command == .write else { return .plain(clusterCount: clusterCount) }
    let geometry = layers[0].geometry
    let cursor = requests.slots[index].placeCursor
    let covered = (requests.slots[index].placeEnd - cursor) >> UInt64(geometry.clusterBits)
    guard cursor.isAligned(to: geometry.clusterByteCount), covered > 0 else {
      return .plain(clusterCount: 1)
    }
    let limit = min(clusterCount, Int(covered))
    let payload = requests.slots[index].packedPayload
    guard let number = payload.number(of: cursor, geometry.clusterBits) else {
      return .moved(startPacking(index, limit))
    }
    let count = payload.run(from: number, limit: limit)
    switch payload.form(number) {
    case .plain: return .plain(clusterCount: count)
    case .zero: return .moved(forgetClusters(index, count))
    case .packed: return .moved(beginPackedAllocation(index, count))
    }
  }

  private mutating func startPacking(_ index: Int, _ clusterCount: Int) -> Progress {
    let clusterByteCount = Int(layers[0].geometry.clusterByteCount)
    let count = PackedPayload.batch(clusterCount, clusterByteCount)
    let needed = PackedPayload.bufferByteCount(count, clusterByteCount)
    if requests.slots[index].packedPayload.buffer.isEmpty {
      guard packingCount < PackedPayload.requestsMax else {
        packingWaiters.append(index, &requests.slots)
        return .waits
      }
      packingCount += 1
    }
    if requests.slots[index].packedPayload.buffer.byteCount < needed {
      buffers.release(requests.slots[index].packedPayload.buffer)
      requests.slots[index].packedPayload = PackedPayload()
      guard let buffer = buffers.acquire(byteCount: needed) else {
        packingCount -= 1
        return fail(index, .noMemory)
      }
      requests.slots[index].packedPayload.buffer = buffer
    }
    let cursor = requests.slots[index].placeCursor
    requests.slots[index].packedPayload.guestStart = cursor
    requests.slots[index].packedPayload.clusterCount = count
    requests.slots[index].stage = .packing
    let plain = requests.slots[index].buffer
    let start = Int(cursor - requests.slots[index].bufferStart)
    let target = requests.slots[index].packedPayload.buffer
    let codec = layers[0].codec
    let mayForget = canForget
    submitToPool(index) {
      PackedPayload.pack(
        plain, start, clusterCount: count, clusterByteCount: clusterByteCount, codec,
        mayForget: mayForget, into: target)
      return 0
    }
    return .waits
  }

  mutating func finishPacking(_ index: Int) -> Progress {
    if requests.slots[index].poolCount > 0 { return .waits }
    requests.slots[index].stage = .placing
    return .more
  }

  /// Gives up what was packed, if anything was, for the next one to pack.
  mutating func endPacking(_ index: Int) {
    guard !requests.slots[index].packedPayload.buffer.isEmpty else { return }
    buffers.release(requests.slots[index].packedPayload.buffer)
    requests.slots[index].packedPayload = PackedPayload()
    packingCount -= 1
    ready.append(contentsOf: &packingWaiters, &requests.slots)
  }

  // MARK: Zeroes

  /// Lets clusters from the cursor on read as zeroes, whose table is in memory and may be changed.
  private mutating func forgetClusters(_ index: Int, _ clusterCount: Int) -> Progress {
    let cursor = requests.slots[index].placeCursor
    if allocationOwner(at: cursor) != nil {
      allocationWaiters.append(index, &requests.slots)
      return .waits
    }
    let geometry = layers[0].geometry
    let count = uncontendedCount(cursor, clusterCount)
    let offset = GuestOffset(byteOffset: cursor)
    let table = L1Entry(rawValue: layers[0].l1[geometry.l1Index(of: offset)]).tableOffset
    let place = PagePlace(
      entryIndex: geometry.l2Index(of: offset), table: table.byteOffset, geometry: geometry)
    guard let page = cache.find(0, place.pageOffset), cache.pages[page].state == .ready else {
      preconditionFailure("a place was found in a table that is not in memory")
    }
    for number in 0..<count {
      let guestStart = cursor + UInt64(number) << UInt64(geometry.clusterBits)
      forgetCluster(page, place.entryInPage + number, guestStart)
    }
    requests.slots[index].placeCursor = cursor + UInt64(count) << UInt64(geometry.clusterBits)
    if requests.slots[index].flags.contains(.fua) { requests.slots[index].needsFlush = true }
    if cache.isMostlyDirty { wantFlush() }
    return .more
  }

  private mutating func forgetCluster(_ page: Int, _ number: Int, _ guestStart: UInt64) {
    let isAlone = layers.count == 1
    let buffer = cache.pages[page].buffer
    if layers[0].geometry.hasSubclusters {
      let old = buffer.extendedEntry(number)
      let new = ExtendedL2Entry(.unallocated, isAlone ? .none : .allZero)
      guard old != new else { return }
      freeHost(of: old.descriptor)
      buffer.storeExtendedEntry(new, number)
      updateIndex(guestStart, new)
    } else {
      let old = L2Entry(rawValue: buffer.loadBigEndian64(at: number * 8))
      let new: L2Entry = isAlone ? .unallocated : .zeroPlain
      guard old != new else { return }
      freeHost(of: old)
      buffer.storeBigEndian64(new.rawValue, at: number * 8)
      updateIndex(guestStart, .zero, host: 0)
    }
    cache.markDirty(page)
  }
}

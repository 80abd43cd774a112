// SPDX-License-Identifier: Apache-2.0
//
// Where an image has its tables, read loosely and by other code than the product's: what a fuzzer
// has to change so that an image says something else. Spec: qcow2.rst, "Header", "Host cluster
// management", "Cluster mapping", "Snapshots", "Bitmaps".

import BlockTypes

/// The places of an image's metadata.
struct ImageAnatomy {
  /// Places with words of `width` bytes, most telling first.
  private(set) var spans: [(start: UInt64, end: UInt64, width: Int)] = []
  private(set) var clusterByteCount: UInt64 = 65536

  private let contents: DiskContents

  init(_ contents: DiskContents) {
    self.contents = contents
    let clusterBits = word(20, 4)
    guard word(0, 4) == 0x5146_49fb, (9...21).contains(clusterBits) else {
      spans = [(0, 112, 4)]
      return
    }
    clusterByteCount = 1 << clusterBits
    add(0, 112, 4)
    let headerByteCount = word(4, 4) < 3 ? 72 : word(100, 4)
    add(headerByteCount, min(512, headerByteCount + 256), 4)
    addMapping(at: word(40, 8), entryCount: word(36, 4))
    addRefcounts()
    addSnapshots()
    addBitmaps(headerByteCount)
  }

  private func word(_ offset: UInt64, _ width: UInt64) -> UInt64 {
    guard offset < contents.byteCount else { return 0 }
    let bytes = contents.read(ByteRange(start: offset, end: offset + width))
    return bytes.count == width ? bytes.reduce(0) { $0 << 8 | UInt64($1) } : 0
  }

  private mutating func add(_ start: UInt64, _ end: UInt64, _ width: Int) {
    let end = min(end, contents.byteCount)
    guard start + UInt64(width) <= end, spans.count < 200 else { return }
    spans.append((start, end, width))
  }

  private mutating func addMapping(at table: UInt64, entryCount: UInt64) {
    add(table, table + min(entryCount, 1024) * 8, 8)
    for index in 0..<min(entryCount, 8) {
      let l2 = word(table + index * 8, 8) & 0x00ff_ffff_ffff_fe00
      if l2 > 0 { add(l2, l2 + min(clusterByteCount, 1024), 8) }
    }
  }

  private mutating func addRefcounts() {
    let table = word(48, 8)
    add(table, table + min(word(56, 4) * clusterByteCount, 512), 8)
    for index in 0..<UInt64(4) {
      let block = word(table + index * 8, 8)
      if block > 0 { add(block, block + min(clusterByteCount, 512), 2) }
    }
  }

  private mutating func addSnapshots() {
    var at = word(64, 8)
    for _ in 0..<min(word(60, 4), 4) {
      let extra = word(at + 36, 4)
      let text = word(at + 12, 2) + word(at + 14, 2)
      let end = (at + 40 + extra + text).alignedUp(to: 8)
      add(at, end, 4)
      addMapping(at: word(at, 8), entryCount: word(at + 8, 4))
      at = end
    }
  }

  private mutating func addBitmaps(_ firstExtension: UInt64) {
    var at = firstExtension
    while at < clusterByteCount, word(at, 4) != 0 {
      if word(at, 4) == 0x2385_2875 {
        let directory = word(at + 16, 8)
        add(directory, directory + word(at + 8, 8), 4)
        let table = word(directory, 8)
        if table > 0 { add(table, table + word(directory + 8, 4) * 8, 8) }
      }
      at += 8 + word(at + 4, 4).alignedUp(to: 8)
    }
  }

  // MARK: Changing it

  /// Eight bytes of an input: which span and which of its words, what kind of value, and 32 bits.
  func edit(_ changed: inout DiskContents, _ bytes: ArraySlice<UInt8>) {
    let input = bytes.map(UInt64.init)
    let span = spans[Int(input[0]) % spans.count]
    let width = input[3] & 0x80 == 0 ? UInt64(span.width) : 1
    let offset = span.start + (input[1] << 8 | input[2]) % ((span.end - span.start) / width) * width
    let value = input[4] << 24 | input[5] << 16 | input[6] << 8 | input[7]
    let clusters = max(changed.byteCount / clusterByteCount, 1) + 2
    let place = (value & 0xffff) % clusters * clusterByteCount
    let old = word(offset, width)
    let new: UInt64
    switch input[3] & 0x0f {
    case 0: new = value
    case 1: new = .max >> (value % 64)
    case 2: new = old ^ 1 << (value % (width * 8))
    case 3: new = (value & 0xffff) % clusters * clusterByteCount
    case 4: new = 1 << 63 | (value & 0xffff) % clusters * clusterByteCount | value >> 31
    case 5: new = 1 << 62 | (value >> 16) << 54 | place
    case 6: new = spans[Int(value) % spans.count].start
    case 7: new = 1 << 63 | spans[Int(value) % spans.count].start
    case 8: new = old &+ (value & 0xff)
    case 9: new = old &- (value & 0xff)
    case 10: new = value << 32
    case 11: new = word(offset ^ width, width)
    case 12: return changed.resize(to: min(value, imageByteCountMax / 2))
    case 13: new = old &+ clusterByteCount
    case 14: new = 1 << 63 | value << 9
    default: new = old &- clusterByteCount
    }
    guard offset + width <= changed.byteCount else { return }
    changed.write(
      (0..<width).map { UInt8(truncatingIfNeeded: new >> (8 * (width - 1 - $0))) }[...], at: offset)
  }
}

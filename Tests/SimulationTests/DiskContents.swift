// SPDX-License-Identifier: Apache-2.0
//
// The bytes of a file in memory, in pages that copies share until one of them is written.

import BlockTypes

/// What a disk holds.
struct DiskContents {
  static let sectorByteCount: UInt64 = 512
  static let pageByteCount: UInt64 = 4096

  private(set) var byteCount: UInt64 = 0
  /// A page without bytes is a hole, which reads as zeroes.
  private var pages: [[UInt8]] = []

  mutating func resize(to newByteCount: UInt64) {
    let size = DiskContents.pageByteCount
    let count = Int((newByteCount + size - 1) / size)
    if newByteCount < byteCount {
      pages.removeLast(pages.count - count)
      let rest = Int(newByteCount % size)
      if rest > 0, !pages[count - 1].isEmpty {
        for index in rest..<Int(size) { pages[count - 1][index] = 0 }
      }
    } else if count > pages.count {
      pages.append(contentsOf: repeatElement([], count: count - pages.count))
    }
    byteCount = newByteCount
  }

  /// The bytes of the range as far as there are any.
  func read(_ range: ByteRange) -> [UInt8] {
    let end = min(range.end, byteCount)
    guard range.start < end else { return [] }
    let size = DiskContents.pageByteCount
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(end - range.start))
    var at = range.start
    while at < end {
      let page = pages[Int(at / size)]
      let count = min(size - at % size, end - at)
      if page.isEmpty {
        bytes.append(contentsOf: repeatElement(0, count: Int(count)))
      } else {
        bytes.append(contentsOf: page[Int(at % size)..<Int(at % size + count)])
      }
      at += count
    }
    return bytes
  }

  /// Writes bytes; the disk grows as a file does.
  mutating func write(_ bytes: ArraySlice<UInt8>, at offset: UInt64) {
    guard !bytes.isEmpty else { return }
    let end = offset + UInt64(bytes.count)
    if end > byteCount { resize(to: end) }
    let size = DiskContents.pageByteCount
    var at = offset
    while at < end {
      let count = min(size - at % size, end - at)
      let source = bytes[
        bytes.startIndex + Int(at - offset)..<bytes.startIndex + Int(at - offset + count)]
      let number = Int(at / size)
      if count == size {
        pages[number] = Array(source)
      } else {
        if pages[number].isEmpty { pages[number] = [UInt8](repeating: 0, count: Int(size)) }
        pages[number].replaceSubrange(Int(at % size)..<Int(at % size + count), with: source)
      }
      at += count
    }
  }

  /// Makes the part of the range that exists read as zeroes, whole pages as holes.
  mutating func zero(_ range: ByteRange) {
    let end = min(range.end, byteCount)
    let size = DiskContents.pageByteCount
    var at = range.start
    while at < end {
      let count = min(size - at % size, end - at)
      let number = Int(at / size)
      if count == size || pages[number].isEmpty {
        pages[number] = []
      } else {
        for index in Int(at % size)..<Int(at % size + count) { pages[number][index] = 0 }
      }
      at += count
    }
  }

  /// How many bytes from `offset` on are alike in being holes or not.
  func run(at offset: UInt64) -> (byteCount: UInt64, isHole: Bool) {
    let size = DiskContents.pageByteCount
    let isHole = pages[Int(offset / size)].isEmpty
    var number = Int(offset / size) + 1
    while number < pages.count, pages[number].isEmpty == isHole { number += 1 }
    return (min(UInt64(number) * size, byteCount) - offset, isHole)
  }
}

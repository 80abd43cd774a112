// SPDX-License-Identifier: Apache-2.0
//
// A piece of a table of entries, read when it is needed: a table may be larger than memory.

import BlockTypes

/// How the entries of a table are stored.
enum EntryShape: Hashable, Sendable {
  case littleEndian32
  case bigEndian32
  case littleEndian64
  case bigEndian64

  var byteCount: Int {
    switch self {
    case .littleEndian32, .bigEndian32: 4
    case .littleEndian64, .bigEndian64: 8
    }
  }

  func load(_ bytes: [UInt8], at offset: Int) -> UInt64 {
    switch self {
    case .littleEndian32: UInt64(bytes.littleEndian(UInt32.self, at: offset))
    case .bigEndian32: UInt64(bytes.bigEndian(UInt32.self, at: offset))
    case .littleEndian64: bytes.littleEndian(UInt64.self, at: offset)
    case .bigEndian64: bytes.bigEndian(UInt64.self, at: offset)
    }
  }
}

/// The 4 KiB of a table that were read last.
struct EntrySlice: Sendable {
  let shape: EntryShape
  /// What messages call the table.
  let name: String
  private var start: UInt64 = 0
  private var bytes: [UInt8] = []

  private static let byteCountMax: UInt64 = 4096

  init(_ shape: EntryShape, of name: String) {
    self.shape = shape
    self.name = name
  }

  /// Entry `index` of the table at `table`, which has `count` entries and lies inside the file.
  mutating func entry<Source: ForeignSource>(
    _ index: UInt64, ofTableAt table: UInt64, count: UInt64, in source: Source
  ) throws(Source.Failure) -> UInt64 {
    precondition(index < count, "a table entry is outside its table")
    let width = UInt64(shape.byteCount)
    let offset = table + index * width
    if bytes.isEmpty || offset < start || offset - start > UInt64(bytes.count) - width {
      let wanted = min(Self.byteCountMax, (count - index) * width)
      bytes = try source.require(name, at: offset, byteCount: Int(wanted))
      start = offset
    }
    return shape.load(bytes, at: Int(offset - start))
  }
}

extension ForeignSource {
  /// Checks that a table of `count` entries lies inside the file.
  func requireTable(
    _ name: String, at offset: UInt64, count: UInt64, width: UInt64
  ) throws(Failure) {
    let (byteCount, isTooLarge) = count.multipliedReportingOverflow(by: width)
    let (end, isTooFar) = offset.addingReportingOverflow(byteCount)
    guard !isTooLarge, !isTooFar, end <= self.byteCount else {
      throw fault(
        .truncated,
        "\(name) with its \(count) entries does not fit into the file's \(self.byteCount) bytes",
        at: offset)
    }
  }
}

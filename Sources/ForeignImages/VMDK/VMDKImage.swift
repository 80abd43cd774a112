// SPDX-License-Identifier: Apache-2.0
//
// A VMDK as a disk: one sparse file that describes itself, or a descriptor and the files beside
// it. Spec: VMware Virtual Disk Format 5.0, "Layout Basics". This file performs no I/O.

import BlockTypes

/// The parts of a VMDK, one after the other on the disk.
struct VMDKImage: Sendable {
  private enum Content: Sendable {
    case flat(file: Int, offset: UInt64)
    case zero
    case sparse(file: Int, BlockMap<VMDKSparseExtent>)
  }

  private struct Part: Sendable {
    let range: ByteRange
    var content: Content
  }

  private var parts: [Part] = []
  private(set) var createType = ""
  /// nil where nothing is cut into grains.
  private(set) var grainByteCount: UInt64?
  private(set) var isCompressed = false
  var byteCount: UInt64 { parts.last?.range.end ?? 0 }

  /// - Parameters:
  ///   - files: the file that the user named; those beside it are added.
  ///   - beside: opens a file in the same folder; nil leaves the parts out, so that only the
  ///     description is read.
  init<Source: ForeignSource>(
    _ files: inout [Source], beside: ((String) throws(Source.Failure) -> Source)?
  ) throws(Source.Failure) {
    let source = files[0]
    let start = try source.read(at: 0, byteCount: VMDKSparseHeader.byteCount)
    guard VMDKDescriptor.looksLike(start) else {
      let extent = try VMDKSparseExtent(source)
      if let range = extent.header.descriptorRange {
        let text = try source.require(
          "the descriptor", at: range.start, byteCount: Int(range.byteCount))
        createType = try source.decode { () throws(ImageError) in
          try VMDKDescriptor(decoding: text, readsExtents: false).createType
        }
      }
      append(extent, file: 0, byteCount: extent.byteCount)
      return
    }
    guard source.byteCount <= UInt64(VMDKDescriptor.byteCountMax) else {
      throw source.fault(.corrupt, "a descriptor of \(source.byteCount) bytes is no text")
    }
    let text = try source.require("the descriptor", at: 0, byteCount: Int(source.byteCount))
    let descriptor = try source.decode { () throws(ImageError) in
      try VMDKDescriptor(decoding: text, readsExtents: true)
    }
    createType = descriptor.createType
    guard !descriptor.extents.isEmpty else {
      throw source.fault(.corrupt, "the descriptor names no extent")
    }
    var numbers: [String: Int] = [:]
    for extent in descriptor.extents {
      guard extent.byteCount <= UInt64(Int64.max) - byteCount else {
        throw source.fault(.corrupt, "the extents together do not fit in 63 bits")
      }
      guard let name = extent.fileName, let beside else {
        append(.zero, extent.byteCount)
        continue
      }
      let number: Int
      if let known = numbers[name] {
        number = known
      } else {
        number = files.count
        files.append(try beside(try Self.requirePlain(name, source)))
        numbers[name] = number
      }
      try append(extent, file: number, in: files[number])
    }
  }

  /// A name of a file beside the descriptor, and nothing that leads elsewhere (CVE-2022-47951).
  private static func requirePlain<Source: ForeignSource>(
    _ name: String, _ source: Source
  ) throws(Source.Failure) -> String {
    let isPlain =
      !name.isEmpty && name != "." && name != ".." && name.utf8.count <= 255
      && name.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x2f && $0 != 0x5c && $0 != 0x7f }
    guard isPlain else {
      throw source.fault(
        .refused,
        "an extent of the descriptor is not the plain name of a file in the same folder; put the "
          + "file there and correct the descriptor")
    }
    return name
  }

  private mutating func append<Source: ForeignSource>(
    _ extent: VMDKDescriptor.Extent, file: Int, in source: Source
  ) throws(Source.Failure) {
    switch extent.kind {
    case .zero: append(.zero, extent.byteCount)
    case .flat(let offset):
      guard offset <= source.byteCount, extent.byteCount <= source.byteCount - offset else {
        throw source.fault(
          .truncated, "the extent needs \(extent.byteCount) bytes from byte \(offset) on")
      }
      append(.flat(file: file, offset: offset), extent.byteCount)
    case .sparse:
      let table = try VMDKSparseExtent(source)
      guard table.byteCount >= extent.byteCount else {
        throw source.fault(
          .corrupt,
          "the extent has \(table.byteCount) bytes, and its descriptor counts with "
            + "\(extent.byteCount)")
      }
      append(table, file: file, byteCount: extent.byteCount)
    }
  }

  private mutating func append(_ table: VMDKSparseExtent, file: Int, byteCount: UInt64) {
    grainByteCount = grainByteCount ?? table.blockByteCount
    if table.header.isCompressed { isCompressed = true }
    append(.sparse(file: file, BlockMap(table)), byteCount)
  }

  private mutating func append(_ content: Content, _ byteCount: UInt64) {
    let start = self.byteCount
    parts.append(Part(range: ByteRange(start: start, end: start + byteCount), content: content))
  }

  mutating func extent<Source: ForeignSource>(
    at offset: UInt64, byteCountMax: UInt64, in files: [Source]
  ) throws(Source.Failure) -> ForeignExtent {
    guard let index = parts.firstIndex(where: { offset < $0.range.end }) else {
      preconditionFailure("an offset lies behind the disk")
    }
    let range = parts[index].range
    let limit = min(byteCountMax, range.end - offset)
    // The table is taken out while it works, so that it is not copied.
    let content = parts[index].content
    parts[index].content = .zero
    switch consume content {
    case .zero: return ForeignExtent(byteCount: limit, content: .zero)
    case .flat(let file, let start):
      parts[index].content = .flat(file: file, offset: start)
      return ForeignExtent(
        byteCount: limit,
        content: .data(file: file, offset: start + (offset - range.start), mayHaveHoles: true))
    case .sparse(let file, var map):
      defer { parts[index].content = .sparse(file: file, map) }
      var extent = try map.extent(
        at: offset - range.start, byteCountMax: limit, file: file, in: files[file])
      if case .packed(var unit) = extent.content {
        unit.unit = ByteRange(
          start: unit.unit.start + range.start, end: unit.unit.end + range.start)
        extent.content = .packed(unit)
      }
      return extent
    }
  }
}

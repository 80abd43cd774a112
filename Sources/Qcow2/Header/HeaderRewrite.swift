// SPDX-License-Identifier: Apache-2.0
//
// The one way to change a header on disk: everything that is not changed stays byte for byte, be it
// known to us or not, and a power cut between two sectors leaves the old header or the new one.
// Spec: qcow2.rst, "Header", "Header extensions". This file performs no I/O.

import BlockTypes

/// A change of the header's cluster, in stages that are made durable one after the other.
public struct HeaderRewrite: Hashable, Sendable {
  /// The cluster after each stage; the last one is the new header. Where a stage changes more than
  /// one sector of 512 bytes, whoever reads a part of it reads the header of the stage before or of
  /// this one.
  public let stages: [[UInt8]]

  /// What the disk writes whole.
  private static let sectorByteCount = 512

  /// Plans the change from `old`, the first cluster of the file, to `header`.
  ///
  /// New values of fields change their bytes only. Where extensions or the backing file's name
  /// change, the name goes to bytes that nobody uses, then the first sector names it and all
  /// extensions but the table of names, which serves messages only and comes back last.
  ///
  /// Throws `.refused` when the header does not fit in its cluster.
  public init(of old: [UInt8], to header: Header) throws(ImageError) {
    let clusterByteCount = Int(header.geometry.clusterByteCount)
    var padded = old
    padded += [UInt8](repeating: 0, count: max(0, clusterByteCount - old.count))
    precondition(padded.count == clusterByteCount, "a header's cluster has another size")
    let oldHeader = try Header(decoding: padded, fileByteCount: Header.fileByteCountMax)
    precondition(
      oldHeader.headerByteCount == header.headerByteCount && oldHeader.version == header.version,
      "a rewritten header keeps its version and length")
    if oldHeader.hasSameAreas(as: header) {
      stages = [try Self.withFields(of: header, in: padded)]
      return
    }
    stages = try Self.restructure(padded, oldHeader, to: header)
  }

  /// `old` with the fields of `header`; the place of the backing file's name stays.
  private static func withFields(of header: Header, in old: [UInt8]) throws(ImageError) -> [UInt8] {
    let encoded = try header.encode()
    var bytes = old
    bytes.replaceSubrange(0..<8, with: encoded[0..<8])
    bytes.replaceSubrange(
      20..<header.headerByteCount, with: encoded[20..<header.headerByteCount])
    return bytes
  }

  private static func restructure(
    _ old: [UInt8], _ oldHeader: Header, to header: Header
  ) throws(ImageError) -> [[UInt8]] {
    let areaEnd = header.extensionsEnd
    let name = Array((header.backingFile ?? "").utf8)
    var nameOffset = Int(old.bigEndianInteger(UInt64.self, at: 8))
    let stays = oldHeader.backingFile == header.backingFile && nameOffset >= areaEnd
    if !stays {
      let free = freePlace(
        for: name.count, in: old, from: max(areaEnd, oldHeader.extensionsEnd))
      // Without a free place for the name nothing but the whole header at once is left.
      guard let free else { return [try header.encode()] }
      nameOffset = free
    }
    let final = try header.encode(nameOffset: name.isEmpty ? nil : nameOffset)
    var stages: [[UInt8]] = []
    var bytes = old
    if !name.isEmpty { bytes.replaceSubrange(nameOffset..<(nameOffset + name.count), with: name) }
    stages.append(bytes)
    var essential = header
    if areaEnd > sectorByteCount {
      essential.extensions.removeAll { $0.type == HeaderExtension.featureNamesType }
    }
    let sector = min(sectorByteCount, old.count)
    if essential.extensionsEnd <= sector {
      let first = try essential.encode(nameOffset: name.isEmpty ? nil : nameOffset)
      bytes.replaceSubrange(0..<sector, with: first[0..<sector])
      stages.append(bytes)
      bytes.replaceSubrange(sector..., with: final[sector...])
      stages.append(bytes)
    }
    stages.append(final)
    return withoutRepeats([old] + stages)
  }

  /// A multiple of 8, at least `start`, from which on `byteCount` bytes are not used, if any is.
  private static func freePlace(for byteCount: Int, in old: [UInt8], from start: Int) -> Int? {
    let first = (start + 7) / 8 * 8
    let behind = ((old.lastIndex { $0 != 0 } ?? 0) + 8) / 8 * 8
    for place in [first, max(first, behind)] where place + byteCount <= old.count {
      if old[place..<(place + byteCount)].allSatisfy({ $0 == 0 }) { return place }
    }
    return nil
  }

  /// The stages after the first that change something; the last one in any case.
  private static func withoutRepeats(_ stages: [[UInt8]]) -> [[UInt8]] {
    let changing = stages.indices.dropFirst().filter { stages[$0] != stages[$0 - 1] }
    return changing.isEmpty ? [stages[stages.count - 1]] : changing.map { stages[$0] }
  }
}

extension HeaderRewrite {
  /// The runs of whole blocks of `blockByteCount` bytes in which `new` differs from `old`.
  public static func changedBlocks(
    from old: [UInt8], to new: [UInt8], blockByteCount: Int
  ) -> [Range<Int>] {
    precondition(new.count.isMultiple(of: blockByteCount), "a header ends inside a block")
    var runs: [Range<Int>] = []
    for start in stride(from: 0, to: new.count, by: blockByteCount) {
      let block = start..<(start + blockByteCount)
      if block.upperBound <= old.count, old[block] == new[block] { continue }
      if let last = runs.last, last.upperBound == start {
        runs[runs.count - 1] = last.lowerBound..<block.upperBound
      } else {
        runs.append(block)
      }
    }
    return runs
  }
}

extension Header {
  /// Whether extensions and names of both are the same, so that only fields differ.
  fileprivate func hasSameAreas(as other: Header) -> Bool {
    backingFile == other.backingFile && backingFormat == other.backingFormat
      && extensions == other.extensions
  }
}

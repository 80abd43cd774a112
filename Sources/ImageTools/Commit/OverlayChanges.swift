// SPDX-License-Identifier: Apache-2.0
//
// What the layers above a base say of the disk, run by run: what a commit has to write into the
// base. Reads tables and data.

import BlockTypes

/// The differences between a chain and one of its layers, from the start of the disk to its end.
public struct OverlayChanges {
  /// A stretch of the disk that the base has to say as the layers above do.
  public struct Change {
    public enum Kind: Sendable { case data, zeroes }
    public let range: ByteRange
    public let kind: Kind
    fileprivate let runs: [SourceRun]
  }

  private var reader: ChainReader
  private let byteCount: UInt64
  private let baseByteCount: UInt64
  private var offset: UInt64 = 0

  /// Bytes of data in one change at most.
  public static let dataByteCountMax = 2 << 20

  /// - Parameters:
  ///   - layers: the opened chain with its keys.
  ///   - baseIndex: which of them is the base.
  public init(_ layers: [OpenedLayer], above baseIndex: Int) throws(ImageFault) {
    precondition((1..<layers.count).contains(baseIndex), "there is no layer above the base")
    // Not the base: its tables change while this goes on, and what one of them left may hold
    // anything by now.
    reader = try ChainReader(Array(layers[..<baseIndex]))
    byteCount = layers[0].diskByteCount
    baseByteCount = layers[baseIndex].diskByteCount
  }

  /// The next change; nil at the disk's end.
  public mutating func next() throws(ImageFault) -> Change? {
    while offset < byteCount {
      let start = offset
      let (count, run) = try reader.ownRun(at: start, byteCountMax: byteCount - start)
      guard let run else {
        offset += count
        continue
      }
      if run.isZero {
        offset += count
        // Behind its end a base reads as zeroes, also when it has grown.
        if start >= baseByteCount { continue }
        return Change(range: ByteRange(start: start, end: offset), kind: .zeroes, runs: [])
      }
      return try collectData(from: start)
    }
    return nil
  }

  private mutating func collectData(from start: UInt64) throws(ImageFault) -> Change {
    let limit = min(byteCount, start + UInt64(Self.dataByteCountMax))
    var runs: [SourceRun] = []
    while offset < limit {
      let (_, run) = try reader.ownRun(at: offset, byteCountMax: limit - offset)
      guard let run, !run.isZero else { break }
      runs.append(run)
      offset += run.byteCount
    }
    return Change(range: ByteRange(start: start, end: offset), kind: .data, runs: runs)
  }

  /// Puts the data of `change` to the start of `buffer`.
  ///
  /// - Parameter buffer: at least `dataByteCountMax` bytes.
  public func load(_ change: Change, into buffer: inout [UInt8]) throws(ImageFault) {
    var place = change.range.start
    for run in change.runs {
      try run.load(at: place, into: &buffer, Int(place - change.range.start))
      place += run.byteCount
    }
  }
}

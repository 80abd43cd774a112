// SPDX-License-Identifier: Apache-2.0
//
// Changing what the header says about persistent bitmaps, in steps that a power cut cannot hurt,
// and leaving all the rest of it as it is.
// Spec: qcow2.rst, "Header extensions", "Bitmaps extension"; decision 0024. No I/O.

import BlockTypes

/// The start of an image's file, in the course of such a change.
///
/// A disk writes sectors of 512 bytes whole, and nothing larger. So a step changes fields of one
/// sector, or bytes that mean nothing yet.
public struct BitmapsHeaderEdit {
  /// What the header is to say.
  public struct Target: Hashable, Sendable {
    /// The directory; nil when there are no bitmaps.
    public var directory: BitmapsExtension?
    /// Which entries of the directory are complete though they are in use: bit `i` for entry `i`.
    public var completeMask: UInt64
    /// Whether the mask is in force.
    public var isMaskValid: Bool

    public init(directory: BitmapsExtension?, completeMask: UInt64, isMaskValid: Bool) {
      self.directory = directory
      self.completeMask = completeMask
      self.isMaskValid = isMaskValid
    }
  }

  /// The first bytes of the file after each step; each is to be durable before the next is written.
  public private(set) var steps: [[UInt8]] = []
  private var bytes: [UInt8]
  private let isOneSector: Bool

  private static let sectorByteCount = 512
  private static let autoclearOffset = Int(Header.autoclearFeaturesOffset.byteOffset)

  /// - Parameter bytes: the first cluster of the file, or as much of it as a header can need.
  /// - Throws: when the header has no room.
  public init(of bytes: [UInt8], to target: Target) throws(ImageError) {
    self.bytes = bytes
    isOneSector = bytes.count <= Self.sectorByteCount
    guard bytes.bigEndianInteger(UInt32.self, at: 4) >= 3 else {
      throw ImageError(
        .unsupported, "an image of version 2 has no persistent bitmaps; amend it to version 3")
    }
    guard let directory = target.directory else {
      try removeAll()
      return
    }
    if !target.isMaskValid { setAutoclear(.completeBitmaps, false) }
    if try place(of: HeaderExtension.completeBitmapsType) == nil {
      let isNew = try directoryPlace() == nil
      try insert(withDirectory: isNew)
    } else if try directoryPlace() == nil {
      try insert(withDirectory: true)
    }
    try name(directory, target.completeMask)
    setAutoclear(target.isMaskValid ? [.bitmaps, .completeBitmaps] : .bitmaps, true)
  }

  private mutating func step() { steps.append(bytes) }

  private mutating func setAutoclear(_ bits: AutoclearFeatures, _ isSet: Bool) {
    let old = bytes.bigEndianInteger(UInt64.self, at: Self.autoclearOffset)
    let new = isSet ? old | bits.rawValue : old & ~bits.rawValue
    guard new != old else { return }
    bytes.putBigEndian(new, at: Self.autoclearOffset)
    step()
  }

  /// An image without bitmaps: the extension becomes a spare one, which readers skip.
  private mutating func removeAll() throws(ImageError) {
    setAutoclear([.completeBitmaps, .bitmaps], false)
    guard let old = try place(of: HeaderExtension.bitmapsType) else { return }
    bytes.putBigEndian(HeaderExtension.spareType, at: old)
    step()
  }

  /// Names the directory and what is complete in it.
  private mutating func name(
    _ directory: BitmapsExtension, _ mask: UInt64
  ) throws(ImageError) {
    guard let maskPlace = try place(of: HeaderExtension.completeBitmapsType),
      let place = try directoryPlace()
    else { preconditionFailure("a header extension that was inserted is not there") }
    var next = bytes
    next.putBigEndian(HeaderExtension.bitmapsType, at: place)
    next.replaceSubrange(place + 8..<place + 32, with: directory.encoded)
    let names = next != bytes
    next.putBigEndian(mask, at: maskPlace + 8)
    guard next != bytes else { return }
    let sector = place / Self.sectorByteCount
    let isOneSector =
      (place + 31) / Self.sectorByteCount == sector
      && (maskPlace + 15) / Self.sectorByteCount == sector
    if !isOneSector {
      // What is half old and half new must not be believed. A header of QEMU can be like this.
      setAutoclear(names ? [.completeBitmaps, .bitmaps] : .completeBitmaps, false)
      next.replaceSubrange(
        Self.autoclearOffset..<Self.autoclearOffset + 8,
        with: bytes[Self.autoclearOffset..<Self.autoclearOffset + 8])
    }
    bytes = next
    step()
  }

  // MARK: Room

  /// Makes room for the extensions that are missing.
  private mutating func insert(withDirectory: Bool) throws(ImageError) {
    var missing: [HeaderExtension] = []
    if try place(of: HeaderExtension.completeBitmapsType) == nil {
      missing.append(.zeroes(HeaderExtension.completeBitmapsType, byteCount: 8))
    }
    if withDirectory { missing.append(.zeroes(HeaderExtension.spareType, byteCount: 24)) }
    if isOneSector { return try insertInOneSector(missing) }
    var added: [UInt8] = []
    for element in missing { element.append(to: &added) }
    var end = try area().end
    let inSector = end % Self.sectorByteCount
    if inSector + added.count > Self.sectorByteCount,
      try place(of: HeaderExtension.paddingType) == nil
    {
      var padding: [UInt8] = []
      HeaderExtension.zeroes(
        HeaderExtension.paddingType, byteCount: Self.sectorByteCount - inSector - 8
      ).append(to: &padding)
      added = padding + added
    }
    try moveBackingName(behind: end + added.count + 8)
    end = try area().end
    // Behind the end mark nothing is read; then the mark becomes the first of them.
    bytes.replaceSubrange(
      end + 8..<end + added.count + 8,
      with: added[8...] + [UInt8](repeating: 0, count: 8))
    step()
    bytes.replaceSubrange(end..<end + 8, with: added[..<8])
    step()
  }

  /// In a cluster of one sector all is written at once; the names of features make room.
  private mutating func insertInOneSector(_ missing: [HeaderExtension]) throws(ImageError) {
    var header = try Header(decoding: bytes, fileByteCount: .max)
    header.extensions += missing
    bytes = try header.encode()
    step()
  }

  private mutating func moveBackingName(behind end: Int) throws(ImageError) {
    let offset = Int(bytes.bigEndianInteger(UInt64.self, at: 8))
    let byteCount = Int(bytes.bigEndianInteger(UInt32.self, at: 16))
    let target = offset == 0 ? end : (max(end, offset + byteCount) + 7) / 8 * 8
    guard target + (offset == 0 ? 0 : byteCount) <= bytes.count else {
      throw ImageError(.refused, "the header has no room for persistent bitmaps")
    }
    guard offset != 0, offset < end else { return }
    bytes.replaceSubrange(target..<target + byteCount, with: bytes[offset..<offset + byteCount])
    step()
    bytes.putBigEndian(UInt64(target), at: 8)
    step()
  }

  // MARK: Finding

  /// Where the extensions start and where their end mark is.
  private func area() throws(ImageError) -> (start: Int, end: Int) {
    let start = Int(bytes.bigEndianInteger(UInt32.self, at: 100))
    var at = start
    while at + 8 <= bytes.count, bytes.bigEndianInteger(UInt32.self, at: at) != 0 {
      at += 8 + (Int(bytes.bigEndianInteger(UInt32.self, at: at + 4)) + 7) / 8 * 8
    }
    guard at + 8 <= bytes.count else {
      throw ImageError(.refused, "the header extensions have no end mark")
    }
    return (start, at)
  }

  private func place(of type: UInt32) throws(ImageError) -> Int? {
    let (start, end) = try area()
    var at = start
    while at < end {
      if bytes.bigEndianInteger(UInt32.self, at: at) == type { return at }
      at += 8 + (Int(bytes.bigEndianInteger(UInt32.self, at: at + 4)) + 7) / 8 * 8
    }
    return nil
  }

  /// The extension that names the directory, or the spare one that can.
  private func directoryPlace() throws(ImageError) -> Int? {
    if let place = try place(of: HeaderExtension.bitmapsType) { return place }
    return try place(of: HeaderExtension.spareType)
  }
}

extension HeaderExtension {
  fileprivate static func zeroes(_ type: UInt32, byteCount: Int) -> HeaderExtension {
    HeaderExtension(type: type, content: [UInt8](repeating: 0, count: byteCount))
  }
}

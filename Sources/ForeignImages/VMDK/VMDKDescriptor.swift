// SPDX-License-Identifier: Apache-2.0
//
// The text that describes a VMDK: what kind it is and which files it consists of.
// Spec: VMware Virtual Disk Format 5.0, "The Descriptor File". This file performs no I/O.

import BlockTypes

/// A descriptor, decoded.
struct VMDKDescriptor: Hashable, Sendable {
  /// One line of the extent description.
  struct Extent: Hashable, Sendable {
    enum Kind: Hashable, Sendable {
      case flat(offset: UInt64)
      case sparse
      case zero
    }

    let byteCount: UInt64
    let kind: Kind
    /// The file's name; nil where zeroes need none.
    let fileName: String?
  }

  static let byteCountMax = 1 << 20
  static let extentCountMax = 512
  private static let firstLine = "# Disk DescriptorFile"

  private(set) var createType = ""
  private(set) var extents: [Extent] = []

  /// Whether a file begins as a descriptor does.
  static func looksLike(_ bytes: [UInt8]) -> Bool { bytes.starts(with: firstLine.utf8) }

  /// - Parameter readsExtents: off for a descriptor inside an extent, which describes that file.
  init(decoding bytes: [UInt8], readsExtents: Bool) throws(ImageError) {
    let text = bytes.text(at: 0, byteCount: bytes.count)
    for line in text.split(whereSeparator: \.isNewline) {
      let line = line.drop(while: \.isWhitespace)
      if line.isEmpty || line.hasPrefix("#") { continue }
      if let equals = line.firstIndex(of: "="), !Self.isExtent(line) {
        try read(
          key: Self.trimmed(line[..<equals]).lowercased(),
          value: Self.trimmed(line[line.index(after: equals)...]))
      } else if readsExtents && Self.isExtent(line) {
        guard extents.count < Self.extentCountMax else {
          throw ImageError(
            .unsupported, "the descriptor names more than \(Self.extentCountMax) extents")
        }
        extents.append(try Self.extent(line))
      }
    }
  }

  private mutating func read(key: String, value: String) throws(ImageError) {
    switch key {
    case "createtype": createType = value
    case "parentcid":
      guard value.lowercased() == "ffffffff" else {
        throw ImageError(
          .unsupported,
          "the VMDK is a difference to another one (parentCID \(value)), which is not supported; "
            + "merge it with its parent first")
      }
    default: return
    }
  }

  private static func isExtent(_ line: Substring) -> Bool {
    ["RW ", "RDONLY ", "NOACCESS "].contains { line.hasPrefix($0) }
  }

  /// `RW 4192256 SPARSE "name-s001.vmdk"`, and for flat ones a first sector.
  private static func extent(_ line: Substring) throws(ImageError) -> Extent {
    let parts = line.split(separator: "\"", maxSplits: 2, omittingEmptySubsequences: false)
    let words = parts[0].split(separator: " ")
    guard words.count == 3, let sectorCount = UInt64(words[1]) else {
      throw ImageError(.corrupt, "the extent '\(shown(line))' of the descriptor is not understood")
    }
    let (byteCount, isTooLarge) = sectorCount.multipliedReportingOverflow(by: 512)
    guard !isTooLarge, byteCount <= UInt64(Int64.max), byteCount > 0 else {
      throw ImageError(.corrupt, "an extent of \(sectorCount) sectors makes no sense")
    }
    guard words[0] != "NOACCESS" else {
      throw ImageError(.unsupported, "an extent of the descriptor may not be accessed")
    }
    let fileName = parts.count == 3 ? String(parts[1]) : nil
    switch words[2] {
    case "ZERO": return Extent(byteCount: byteCount, kind: .zero, fileName: nil)
    case "FLAT", "VMFS":
      guard let fileName else { break }
      let first = UInt64(trimmed(parts[2])) ?? 0
      let (offset, isTooFar) = first.multipliedReportingOverflow(by: 512)
      guard !isTooFar else { break }
      return Extent(byteCount: byteCount, kind: .flat(offset: offset), fileName: fileName)
    case "SPARSE":
      guard let fileName else { break }
      return Extent(byteCount: byteCount, kind: .sparse, fileName: fileName)
    default:
      throw ImageError(
        .unsupported, "extents of the type \(shown(words[2])) are not supported")
    }
    throw ImageError(.corrupt, "the extent '\(shown(line))' of the descriptor is not understood")
  }

  /// Text of a stranger, cut and without control characters, for a message.
  private static func shown(_ text: Substring) -> String {
    String(
      text.unicodeScalars.prefix(80).map { $0.isASCII && $0.value >= 32 ? Character($0) : "?" })
  }

  /// Without blanks and quotes around it.
  private static func trimmed(_ text: Substring) -> String {
    func isAround(_ character: Character) -> Bool { character.isWhitespace || character == "\"" }
    var rest = text.drop(while: isAround)
    while let last = rest.last, isAround(last) { rest.removeLast() }
    return String(rest)
  }
}

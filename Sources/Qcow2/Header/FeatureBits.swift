// SPDX-License-Identifier: Apache-2.0
//
// The three feature bit fields of a qcow2 version 3 header and the names of their bits.
// Spec: qcow2.rst, "Header", "Feature name table". This file performs no I/O.

/// Bits that a program must know to open the image at all.
public struct IncompatibleFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Reference counts may be stale and must be rebuilt before the image is written.
  public static let dirty = IncompatibleFeatures(rawValue: 1 << 0)
  /// Some structure may be damaged; the image must be repaired before it is written.
  public static let corrupt = IncompatibleFeatures(rawValue: 1 << 1)
  public static let externalDataFile = IncompatibleFeatures(rawValue: 1 << 2)
  /// The compression type is stored in the header and is not zlib.
  public static let compressionType = IncompatibleFeatures(rawValue: 1 << 3)
  public static let extendedL2 = IncompatibleFeatures(rawValue: 1 << 4)

  /// The bits that have a meaning, supported or not.
  public static let known: IncompatibleFeatures = [
    .dirty, .corrupt, .externalDataFile, .compressionType, .extendedL2,
  ]
}

/// Bits that a program may ignore.
public struct CompatibleFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// A writer may postpone reference counts while it has marked the image dirty.
  public static let lazyRefcounts = CompatibleFeatures(rawValue: 1 << 0)
}

/// Bits that a program which does not know them must clear before it writes.
public struct AutoclearFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The bitmaps extension is consistent with the image.
  public static let bitmaps = AutoclearFeatures(rawValue: 1 << 0)
  /// The external data file can be read as a raw image.
  public static let rawExternalData = AutoclearFeatures(rawValue: 1 << 1)

  /// Ours: bitmaps that are in use are complete, as far as our header extension says so
  /// (decision 0024). A writer that does not know it clears it, as it must.
  public static let completeBitmaps = AutoclearFeatures(rawValue: 1 << 58)

  mutating func set(_ bit: AutoclearFeatures, _ isSet: Bool) {
    if isSet { insert(bit) } else { remove(bit) }
  }

  public static let known: AutoclearFeatures = [.bitmaps, .rawExternalData, .completeBitmaps]
}

/// One row of the feature name table: how another program calls a bit.
public struct FeatureName: Hashable, Sendable {
  /// Which field a bit belongs to, with the number that the table gives it.
  public enum Field: UInt8, Hashable, Sendable {
    case incompatible = 0
    case compatible = 1
    case autoclear = 2
  }

  public let field: Field
  public let bit: UInt8
  public let name: String

  public init(field: Field, bit: UInt8, name: String) {
    self.field = field
    self.bit = bit
    self.name = name
  }

  /// Bytes of one row: type, bit number and 46 bytes of name.
  static let rowByteCount = 48

  /// The rows that a new version 3 image carries.
  public static let standard: [FeatureName] = [
    FeatureName(field: .incompatible, bit: 0, name: "dirty bit"),
    FeatureName(field: .incompatible, bit: 1, name: "corrupt bit"),
    FeatureName(field: .incompatible, bit: 2, name: "external data file"),
    FeatureName(field: .incompatible, bit: 3, name: "compression type"),
    FeatureName(field: .incompatible, bit: 4, name: "extended L2 entries"),
    FeatureName(field: .compatible, bit: 0, name: "lazy refcounts"),
    FeatureName(field: .autoclear, bit: 0, name: "bitmaps"),
    FeatureName(field: .autoclear, bit: 1, name: "raw external data"),
  ]

  /// What the bit of complete bitmaps is called, in images that use it.
  static let completeBitmaps = FeatureName(
    field: .autoclear, bit: 58, name: "complete bitmaps in use")

  /// Decodes the rows of a table; rows of unknown fields and a cut last row are skipped, because
  /// the names serve messages only.
  static func rows(decoding content: [UInt8]) -> [FeatureName] {
    stride(from: 0, to: content.count - content.count % rowByteCount, by: rowByteCount).compactMap {
      start in
      guard let field = Field(rawValue: content[start]) else { return nil }
      let name = content[(start + 2)..<(start + rowByteCount)].prefix { $0 != 0 }
      return FeatureName(
        field: field, bit: content[start + 1], name: String(decoding: name, as: UTF8.self))
    }
  }

  static func encode(_ rows: [FeatureName]) -> [UInt8] {
    var content: [UInt8] = []
    for row in rows {
      let name = Array(row.name.utf8.prefix(rowByteCount - 2))
      content += [row.field.rawValue, row.bit] + name
      content += [UInt8](repeating: 0, count: rowByteCount - 2 - name.count)
    }
    return content
  }
}

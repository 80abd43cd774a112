// SPDX-License-Identifier: Apache-2.0
//
// Reads a qcow2 header and refuses what cannot be true. Spec: qcow2.rst, "Header"; limits beyond
// the text are those of QEMU's reader. This file performs no I/O.

import BlockTypes

extension Header {
  /// Whether `bytes`, the start of a file, begin as a qcow2 image does.
  public static func hasMagic(_ bytes: [UInt8]) -> Bool { bytes.starts(with: magic) }

  /// Returns how many bytes from the start of the file `init(decoding:fileByteCount:)` wants: one
  /// cluster.
  ///
  /// - Parameter prefix: at least `prefixByteCount` bytes of the file, if it has them.
  public static func clusterByteCount(peeking prefix: [UInt8]) throws(ImageError) -> Int {
    guard hasMagic(prefix) || prefix.count < magic.count else {
      throw ImageError(.corrupt, "this is not a qcow2 image: the magic is missing", at: .zero)
    }
    guard prefix.count >= prefixByteCount else {
      throw ImageError(.truncated, "the file ends inside the qcow2 header", at: .zero)
    }
    let clusterBits = prefix.bigEndianInteger(UInt32.self, at: 20)
    guard (9...21).contains(clusterBits) else {
      throw ImageError(
        .unsupported, "cluster_bits \(clusterBits) is outside 9...21", at: .field(20))
    }
    return 1 << Int(clusterBits)
  }

  /// Decodes the header cluster.
  ///
  /// Accepts every image that the format allows, also with features that this program lacks:
  /// call `requireSupported` before using it.
  ///
  /// - Parameters:
  ///   - bytes: the first cluster of the file, or the whole file when it is shorter.
  ///   - fileByteCount: bytes of the file; no table may pass its end.
  public init(decoding bytes: [UInt8], fileByteCount: UInt64) throws(ImageError) {
    let clusterByteCount = try Self.clusterByteCount(peeking: bytes)
    let version = bytes.bigEndianInteger(UInt32.self, at: 4)
    guard version == 2 || version == 3 else {
      throw ImageError(.unsupported, "qcow2 version \(version) is neither 2 nor 3", at: .field(4))
    }
    self.version = Int(version)
    let fields = try VersionedFields(
      decoding: bytes, version: self.version, clusterByteCount: clusterByteCount)
    let hasSubclusters = fields.incompatible.contains(.extendedL2)
    guard !hasSubclusters || clusterByteCount >= 1 << ClusterGeometry.extendedClusterBitsMin else {
      throw ImageError(
        .unsupported, "clusters of \(clusterByteCount) bytes are too small for extended L2 entries",
        at: .field(20))
    }
    self.geometry = ClusterGeometry(
      clusterBits: Int(bytes.bigEndianInteger(UInt32.self, at: 20)),
      refcountOrder: fields.refcountOrder, hasSubclusters: hasSubclusters)
    self.diskByteCount = bytes.bigEndianInteger(UInt64.self, at: 24)
    self.encryptionMethod = bytes.bigEndianInteger(UInt32.self, at: 32)
    let l1EntryCount = bytes.bigEndianInteger(UInt32.self, at: 36)
    self.l1EntryCount = Int(l1EntryCount)
    self.l1TableOffset = HostOffset(byteOffset: bytes.bigEndianInteger(UInt64.self, at: 40))
    self.refcountTableOffset = HostOffset(byteOffset: bytes.bigEndianInteger(UInt64.self, at: 48))
    self.refcountTableClusterCount = Int(bytes.bigEndianInteger(UInt32.self, at: 56))
    self.snapshotCount = Int(bytes.bigEndianInteger(UInt32.self, at: 60))
    self.snapshotTableOffset = HostOffset(byteOffset: bytes.bigEndianInteger(UInt64.self, at: 64))
    self.incompatibleFeatures = fields.incompatible
    self.compatibleFeatures = fields.compatible
    self.autoclearFeatures = fields.autoclear
    self.headerByteCount = fields.headerByteCount
    self.compressionType = fields.compressionType
    self.unknownFieldBytes = fields.unknownBytes

    let backing = try Self.backingName(
      in: bytes, headerByteCount: headerByteCount, clusterByteCount)
    self.backingFile = backing?.name
    var extensions = try HeaderExtension.list(
      decoding: bytes, area: headerByteCount..<(backing?.offset ?? clusterByteCount))
    self.backingFormat = nil
    if let index = extensions.firstIndex(where: { $0.type == HeaderExtension.backingFormatType }) {
      let content = extensions.remove(at: index).content
      guard content.count <= HeaderExtension.backingFormatByteCountMax else {
        throw ImageError(.corrupt, "the recorded backing format is longer than 15 bytes")
      }
      self.backingFormat = String(decoding: content, as: UTF8.self)
    }
    self.extensions = extensions
    try requireConsistentTables(fileByteCount: fileByteCount)
    try requireConsistentFeatures()
  }

  /// The backing file's name and where it starts, nil when the header has none.
  private static func backingName(
    in bytes: [UInt8], headerByteCount: Int, _ clusterByteCount: Int
  ) throws(ImageError) -> (name: String?, offset: Int)? {
    let offset = bytes.bigEndianInteger(UInt64.self, at: 8)
    let byteCount = Int(bytes.bigEndianInteger(UInt32.self, at: 16))
    guard offset != 0 else { return nil }
    guard offset >= UInt64(headerByteCount), offset <= UInt64(clusterByteCount) else {
      throw ImageError(.corrupt, "the backing file's name is not in the header", at: .field(8))
    }
    let start = Int(offset)
    guard byteCount <= min(backingFileByteCountMax, clusterByteCount - start) else {
      throw ImageError(.corrupt, "the backing file's name is too long", at: .field(16))
    }
    guard byteCount > 0 else { return (nil, start) }
    guard byteCount <= bytes.count - start else {
      throw ImageError(.truncated, "the file ends inside the backing file's name", at: .field(8))
    }
    let content = bytes[start..<(start + byteCount)]
    guard !content.contains(0), let name = String(validating: content, as: UTF8.self) else {
      throw ImageError(
        .unsupported, "the backing file's name is not UTF-8 text without NUL", at: .field(8))
    }
    return (name, start)
  }
}

/// The fields that only version 3 has, with the values that version 2 implies.
private struct VersionedFields {
  var incompatible: IncompatibleFeatures = []
  var compatible: CompatibleFeatures = []
  var autoclear: AutoclearFeatures = []
  var refcountOrder = 4
  var headerByteCount = Header.version2ByteCount
  var compressionType: UInt8 = 0
  var unknownBytes: [UInt8] = []

  init(decoding bytes: [UInt8], version: Int, clusterByteCount: Int) throws(ImageError) {
    if version == 2 { return }
    guard bytes.count >= Header.version3ByteCountMin else {
      throw ImageError(.truncated, "the file ends inside the qcow2 header", at: .zero)
    }
    incompatible = IncompatibleFeatures(rawValue: bytes.bigEndianInteger(UInt64.self, at: 72))
    compatible = CompatibleFeatures(rawValue: bytes.bigEndianInteger(UInt64.self, at: 80))
    autoclear = AutoclearFeatures(rawValue: bytes.bigEndianInteger(UInt64.self, at: 88))
    let order = bytes.bigEndianInteger(UInt32.self, at: 96)
    guard order <= 6 else {
      throw ImageError(.corrupt, "refcount_order \(order) is larger than 6", at: .field(96))
    }
    refcountOrder = Int(order)
    let byteCount = bytes.bigEndianInteger(UInt32.self, at: 100)
    guard byteCount >= UInt32(Header.version3ByteCountMin), byteCount % 8 == 0 else {
      throw ImageError(
        .corrupt, "header_length \(byteCount) is below 104 or no multiple of 8", at: .field(100))
    }
    guard byteCount <= UInt32(clusterByteCount) else {
      throw ImageError(.corrupt, "the header is longer than a cluster", at: .field(100))
    }
    headerByteCount = Int(byteCount)
    guard headerByteCount <= bytes.count else {
      throw ImageError(.truncated, "the file ends inside the qcow2 header", at: .field(100))
    }
    if headerByteCount > Header.version3ByteCountMin {
      compressionType = bytes[Header.version3ByteCountMin]
      unknownBytes = Array(bytes[(Header.version3ByteCountMin + 1)..<headerByteCount])
    }
  }
}

extension HostOffset {
  static var zero: HostOffset { HostOffset(byteOffset: 0) }

  /// The place of a header field.
  static func field(_ byteOffset: UInt64) -> HostOffset { HostOffset(byteOffset: byteOffset) }
}

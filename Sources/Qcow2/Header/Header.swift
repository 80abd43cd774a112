// SPDX-License-Identifier: Apache-2.0
//
// The header of a qcow2 image, versions 2 and 3, as a value.
// Spec: qcow2.rst, "Header". This file performs no I/O.

import BlockTypes

/// Everything that the header cluster of a qcow2 image says.
///
/// What this program does not know (header fields, extensions, feature bits) is kept verbatim, so
/// that decoding and encoding lose nothing.
public struct Header: Sendable, Hashable {
  /// 2 or 3.
  public var version: Int
  /// The backing file's name as recorded, nil when there is none. Never interpreted here.
  public var backingFile: String?
  /// The backing file's recorded format, nil when the image does not tell.
  public var backingFormat: String?
  public var geometry: ClusterGeometry
  /// Bytes of the virtual disk.
  public var diskByteCount: UInt64
  /// 0 none, 1 AES, 2 LUKS.
  public var encryptionMethod: UInt32
  public static let encryptionAES: UInt32 = 1
  public static let encryptionLUKS: UInt32 = 2
  public var l1EntryCount: Int
  public var l1TableOffset: HostOffset
  public var refcountTableOffset: HostOffset
  public var refcountTableClusterCount: Int
  public var snapshotCount: Int
  public var snapshotTableOffset: HostOffset
  public var incompatibleFeatures: IncompatibleFeatures
  public var compatibleFeatures: CompatibleFeatures
  public var autoclearFeatures: AutoclearFeatures
  /// Bytes of the header without extensions: 72 in version 2, at least 104 in version 3.
  public var headerByteCount: Int
  /// 0 zlib, 1 zstd.
  public var compressionType: UInt8
  /// The bytes of the header from byte 105 on: padding and fields that newer programs defined.
  public var unknownFieldBytes: [UInt8]
  /// The extensions other than the backing format, in their order.
  public var extensions: [HeaderExtension]

  public static let magic: [UInt8] = [0x51, 0x46, 0x49, 0xfb]

  /// Bytes that a header has at least, in version 2 and in version 3.
  public static let version2ByteCount = 72
  public static let version3ByteCountMin = 104
  /// Bytes that suffice to tell the cluster's size and with it the extent of the whole header.
  public static let prefixByteCount = 72

  public static let backingFileByteCountMax = 1023
  /// The compressions that this program knows: 0 zlib, 1 zstd.
  public static let compressionTypeMax: UInt8 = 1
  public static let l1TableByteCountMax = 32 << 20
  public static let refcountTableByteCountMax = 8 << 20
  public static let snapshotCountMax = 65_536
  /// Largest file offset that any structure may end at.
  public static let fileByteCountMax = UInt64(Int64.max)

  /// A header of a new image without tables; the creator fills in their places.
  public init(version: Int, geometry: ClusterGeometry, diskByteCount: UInt64) {
    precondition(version == 2 || version == 3, "qcow2 has versions 2 and 3")
    precondition(version == 3 || geometry.refcountOrder == 4, "version 2 has 16-bit counts")
    precondition(version == 3 || !geometry.hasSubclusters, "version 2 has no subclusters")
    self.version = version
    self.geometry = geometry
    self.diskByteCount = diskByteCount
    self.encryptionMethod = 0
    self.l1EntryCount = geometry.l1EntryCount(forDiskOf: diskByteCount)
    self.l1TableOffset = HostOffset(byteOffset: 0)
    self.refcountTableOffset = HostOffset(byteOffset: 0)
    self.refcountTableClusterCount = 0
    self.snapshotCount = 0
    self.snapshotTableOffset = HostOffset(byteOffset: 0)
    self.incompatibleFeatures = geometry.hasSubclusters ? .extendedL2 : []
    self.compatibleFeatures = []
    self.autoclearFeatures = []
    self.compressionType = 0
    // Version 3 headers of today have 112 bytes: the compression type and its padding are there.
    self.headerByteCount = version == 3 ? 112 : Self.version2ByteCount
    self.unknownFieldBytes = version == 3 ? [UInt8](repeating: 0, count: 7) : []
    self.extensions =
      version == 3
      ? [
        HeaderExtension(
          type: HeaderExtension.featureNamesType, content: FeatureName.encode(FeatureName.standard))
      ] : []
  }

  /// Whether reference counts may be stale, so that they must be rebuilt before writing.
  public var isDirty: Bool { incompatibleFeatures.contains(.dirty) }
  public var isMarkedCorrupt: Bool { incompatibleFeatures.contains(.corrupt) }
  public var usesLazyRefcounts: Bool { compatibleFeatures.contains(.lazyRefcounts) }

  /// Whether the image holds persistent bitmaps that are valid now.
  public var hasPersistentBitmaps: Bool {
    autoclearFeatures.contains(.bitmaps)
      && extensions.contains { $0.type == HeaderExtension.bitmapsType }
  }

  /// Where the persistent bitmaps are, nil when there is no bitmaps extension.
  public func bitmaps() throws(ImageError) -> BitmapsExtension? {
    guard let content = content(of: HeaderExtension.bitmapsType) else { return nil }
    return try BitmapsExtension(decoding: content, geometry: geometry)
  }

  /// Which entries of the bitmap directory are complete though they are in use: bit `i` for entry
  /// `i` (decision 0024).
  public var completeBitmapsMask: UInt64 {
    guard autoclearFeatures.contains(.completeBitmaps), hasPersistentBitmaps,
      let content = content(of: HeaderExtension.completeBitmapsType), content.count == 8
    else { return 0 }
    return content.bigEndianInteger(UInt64.self, at: 0)
  }

  /// Names the directory of persistent bitmaps, and which of its entries are complete while they
  /// are in use.
  ///
  /// - Parameters:
  ///   - directory: nil when there are no bitmaps.
  ///   - completeMask: bit `i` for entry `i`; nil: none is.
  public mutating func setBitmaps(_ directory: BitmapsExtension?, completeMask: UInt64?) {
    replaceExtension(HeaderExtension.bitmapsType, with: directory?.encoded)
    let hasMask = completeMask != nil && directory != nil
    autoclearFeatures.set(.bitmaps, directory != nil)
    autoclearFeatures.set(.completeBitmaps, hasMask)
    if directory == nil { replaceExtension(HeaderExtension.completeBitmapsType, with: nil) }
    guard let completeMask, hasMask else { return }
    var content: [UInt8] = []
    content.appendBigEndian(completeMask)
    replaceExtension(HeaderExtension.completeBitmapsType, with: content)
    // Small clusters have no room for another name.
    let names = featureNames
    if geometry.clusterBits >= 12, !names.isEmpty, !names.contains(.completeBitmaps) {
      replaceExtension(
        HeaderExtension.featureNamesType, with: FeatureName.encode(names + [.completeBitmaps]))
    }
  }

  /// Where the LUKS header and its key slots are, nil when there is no such extension.
  public func encryptionArea() throws(ImageError) -> EncryptionExtension? {
    guard let content = content(of: HeaderExtension.encryptionType) else { return nil }
    return try EncryptionExtension(decoding: content, geometry: geometry)
  }

  /// The recorded name of the external data file.
  public var externalDataFile: String? {
    content(of: HeaderExtension.externalDataFileType).map { String(decoding: $0, as: UTF8.self) }
  }

  /// What the image itself calls its feature bits.
  public var featureNames: [FeatureName] {
    FeatureName.rows(decoding: content(of: HeaderExtension.featureNamesType) ?? [])
  }

  /// Puts `content` in the place of the extension of this type, or at the end; nil removes it.
  public mutating func replaceExtension(_ type: UInt32, with content: [UInt8]?) {
    let index = extensions.firstIndex { $0.type == type }
    guard let content else {
      if let index { extensions.remove(at: index) }
      return
    }
    let new = HeaderExtension(type: type, content: content)
    if let index { extensions[index] = new } else { extensions.append(new) }
  }

  private func content(of type: UInt32) -> [UInt8]? {
    extensions.first { $0.type == type }?.content
  }
}

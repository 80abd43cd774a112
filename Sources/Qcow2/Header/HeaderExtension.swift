// SPDX-License-Identifier: Apache-2.0
//
// The header extensions of a qcow2 image: typed where we know them, kept verbatim where we do not.
// Spec: qcow2.rst, "Header extensions". This file performs no I/O.

import BlockTypes

/// One header extension: its type and its content without the padding.
public struct HeaderExtension: Hashable, Sendable {
  public let type: UInt32
  public let content: [UInt8]

  public init(type: UInt32, content: [UInt8]) {
    self.type = type
    self.content = content
  }

  public static let endType: UInt32 = 0
  public static let backingFormatType: UInt32 = 0xe279_2aca
  public static let featureNamesType: UInt32 = 0x6803_f857
  public static let bitmapsType: UInt32 = 0x2385_2875
  public static let encryptionType: UInt32 = 0x0537_be77
  public static let externalDataFileType: UInt32 = 0x4441_5441
  /// Ours: 8 bytes that say which bitmaps are complete though they are in use (decision 0024).
  public static let completeBitmapsType: UInt32 = 0x5374_7261

  /// Bytes of an extension's type and length.
  static let prefixByteCount = 8

  /// Longest backing format that QEMU accepts.
  static let backingFormatByteCountMax = 15

  /// Bytes that the extension takes in the header, with its padding to a multiple of 8.
  var encodedByteCount: Int { Self.prefixByteCount + (content.count + 7) / 8 * 8 }

  /// Decodes the extensions in `area` of the header's cluster.
  ///
  /// Bytes of the area that `bytes` does not hold read as zeroes, which end the list. An extension
  /// that passes the area, or a type that comes twice, is corrupt.
  static func list(
    decoding bytes: [UInt8], area: Range<Int>
  ) throws(ImageError) -> [HeaderExtension] {
    var extensions: [HeaderExtension] = []
    var offset = area.lowerBound
    let end = min(area.upperBound, bytes.count)
    while offset + prefixByteCount <= end {
      let type = bytes.bigEndianInteger(UInt32.self, at: offset)
      if type == endType { break }
      let byteCount = Int(bytes.bigEndianInteger(UInt32.self, at: offset + 4))
      let location = HostOffset(byteOffset: UInt64(offset))
      guard byteCount <= area.upperBound - offset - prefixByteCount else {
        throw ImageError(
          .corrupt, "the header extension 0x\(String(type, radix: 16)) is too large", at: location)
      }
      guard byteCount <= end - offset - prefixByteCount else {
        throw ImageError(.truncated, "the file ends inside a header extension", at: location)
      }
      guard !extensions.contains(where: { $0.type == type }) else {
        throw ImageError(
          .corrupt, "the header extension 0x\(String(type, radix: 16)) occurs twice", at: location)
      }
      let start = offset + prefixByteCount
      extensions.append(
        HeaderExtension(type: type, content: Array(bytes[start..<(start + byteCount)])))
      offset = start + (byteCount + 7) / 8 * 8
    }
    return extensions
  }

  func append(to bytes: inout [UInt8]) {
    bytes.appendBigEndian(type)
    bytes.appendBigEndian(UInt32(content.count))
    bytes += content
    bytes += [UInt8](repeating: 0, count: (8 - content.count % 8) % 8)
  }
}

/// What the extension of encryption says: where the LUKS header and its key slots lie.
public struct EncryptionExtension: Hashable, Sendable {
  public let offset: HostOffset
  public let byteCount: UInt64

  /// Bytes of an area that a reader looks at: what LUKS1 uses is below 2 MiB.
  static let byteCountMax: UInt64 = 16 << 20

  public init(offset: HostOffset, byteCount: UInt64) {
    self.offset = offset
    self.byteCount = byteCount
  }

  init(decoding content: [UInt8], geometry: ClusterGeometry) throws(ImageError) {
    guard content.count == 16 else {
      throw ImageError(
        .corrupt, "the extension of encryption has \(content.count) bytes instead of 16")
    }
    let offset = content.bigEndianInteger(UInt64.self, at: 0)
    let byteCount = content.bigEndianInteger(UInt64.self, at: 8)
    guard offset > 0, offset.isAligned(to: geometry.clusterByteCount),
      offset <= Header.fileByteCountMax - Self.byteCountMax
    else {
      throw ImageError(.corrupt, "the encryption header is not at a cluster of the file")
    }
    guard (1...Self.byteCountMax).contains(byteCount) else {
      throw ImageError(
        .corrupt, "the encryption header has \(byteCount) bytes, not 1...\(Self.byteCountMax)")
    }
    self.offset = HostOffset(byteOffset: offset)
    self.byteCount = byteCount
  }

  /// The extension for a header.
  public var headerExtension: HeaderExtension {
    var content: [UInt8] = []
    content.appendBigEndian(offset.byteOffset)
    content.appendBigEndian(byteCount)
    return HeaderExtension(type: HeaderExtension.encryptionType, content: content)
  }
}

/// What the bitmaps extension says: where the directory of persistent bitmaps lies.
public struct BitmapsExtension: Hashable, Sendable {
  public let bitmapCount: Int
  public let directoryByteCount: UInt64
  public let directoryOffset: HostOffset

  static let byteCount = 24
  public static let bitmapCountMax: UInt32 = 65_535
  public static let directoryByteCountMax: UInt64 = 65_535 << 10

  /// A directory that lies at `directoryOffset`.
  public init(bitmapCount: Int, directoryByteCount: UInt64, directoryOffset: HostOffset) {
    precondition(
      (1...Int(Self.bitmapCountMax)).contains(bitmapCount), "a directory has 1...65535 bitmaps")
    self.bitmapCount = bitmapCount
    self.directoryByteCount = directoryByteCount
    self.directoryOffset = directoryOffset
  }

  /// The content of the extension.
  var encoded: [UInt8] {
    var content: [UInt8] = []
    content.appendBigEndian(UInt32(bitmapCount))
    content.appendBigEndian(UInt32(0))
    content.appendBigEndian(directoryByteCount)
    content.appendBigEndian(directoryOffset.byteOffset)
    return content
  }

  init(decoding content: [UInt8], geometry: ClusterGeometry) throws(ImageError) {
    guard content.count == Self.byteCount else {
      throw ImageError(.corrupt, "the bitmaps extension has \(content.count) bytes instead of 24")
    }
    let count = content.bigEndianInteger(UInt32.self, at: 0)
    guard (1...Self.bitmapCountMax).contains(count) else {
      throw ImageError(.corrupt, "the bitmaps extension counts \(count) bitmaps, not 1...65535")
    }
    guard content.bigEndianInteger(UInt32.self, at: 4) == 0 else {
      throw ImageError(.corrupt, "the reserved field of the bitmaps extension is not zero")
    }
    let byteCount = content.bigEndianInteger(UInt64.self, at: 8)
    guard byteCount <= Self.directoryByteCountMax else {
      throw ImageError(.corrupt, "the bitmap directory has \(byteCount) bytes, more than 65535 KiB")
    }
    let offset = content.bigEndianInteger(UInt64.self, at: 16)
    guard offset.isAligned(to: geometry.clusterByteCount), offset <= UInt64(Int64.max) >> 1 else {
      throw ImageError(.corrupt, "the bitmap directory is not at a cluster of the file")
    }
    self.bitmapCount = Int(count)
    self.directoryByteCount = byteCount
    self.directoryOffset = HostOffset(byteOffset: offset)
  }
}

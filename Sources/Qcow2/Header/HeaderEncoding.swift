// SPDX-License-Identifier: Apache-2.0
//
// Writes a qcow2 header as QEMU lays it out. Spec: qcow2.rst, "Header". This file performs no I/O.

import BlockTypes

extension Header {
  /// Returns the header as one whole cluster.
  ///
  /// The order is fields, backing format, other extensions, end mark, backing name. The feature
  /// name table, which only serves messages, is left out where it does not fit.
  /// Throws when even then the cluster is too small.
  ///
  /// - Parameter nameOffset: where the backing name goes; nil: right behind the end mark.
  public func encode(nameOffset: Int? = nil) throws(ImageError) -> [UInt8] {
    let clusterByteCount = Int(geometry.clusterByteCount)
    let extensions = fittingExtensions
    guard encodedByteCount(with: extensions) <= clusterByteCount else {
      throw ImageError(
        .refused,
        "the header does not fit in a cluster of \(clusterByteCount) bytes; choose a shorter "
          + "backing file name or larger clusters")
    }
    let name = Array((backingFile ?? "").utf8)
    guard name.count <= Self.backingFileByteCountMax else {
      throw ImageError(
        .refused,
        "the backing file's name has \(name.count) bytes, more than \(Self.backingFileByteCountMax)"
      )
    }
    var bytes = fieldBytes()
    backingFormatExtension?.append(to: &bytes)
    for element in extensions { element.append(to: &bytes) }
    HeaderExtension(type: HeaderExtension.endType, content: []).append(to: &bytes)
    if let nameOffset {
      precondition(nameOffset >= bytes.count, "a backing name lies on the extensions")
      bytes += [UInt8](repeating: 0, count: nameOffset - bytes.count)
    }
    if !name.isEmpty {
      bytes.putBigEndian(UInt64(bytes.count), at: 8)
      bytes.putBigEndian(UInt32(name.count), at: 16)
      bytes += name
    }
    bytes += [UInt8](repeating: 0, count: clusterByteCount - bytes.count)
    return bytes
  }

  /// Where the end mark of the extensions ends.
  var extensionsEnd: Int {
    encodedByteCount(with: fittingExtensions) - (backingFile ?? "").utf8.count
  }

  /// The extensions, without the feature name table where it does not fit.
  private var fittingExtensions: [HeaderExtension] {
    if encodedByteCount(with: extensions) <= Int(geometry.clusterByteCount) { return extensions }
    return extensions.filter { $0.type != HeaderExtension.featureNamesType }
  }

  private var backingFormatExtension: HeaderExtension? {
    guard let backingFormat, !backingFormat.isEmpty else { return nil }
    return HeaderExtension(
      type: HeaderExtension.backingFormatType, content: Array(backingFormat.utf8))
  }

  private func encodedByteCount(with extensions: [HeaderExtension]) -> Int {
    let format = backingFormatExtension?.encodedByteCount ?? 0
    let others = extensions.reduce(0) { $0 + $1.encodedByteCount }
    return headerByteCount + format + others + HeaderExtension.prefixByteCount
      + (backingFile ?? "").utf8.count
  }

  /// The fields before the extensions; the backing name's place is filled in later.
  private func fieldBytes() -> [UInt8] {
    var bytes = Self.magic
    bytes.appendBigEndian(UInt32(version))
    bytes.appendBigEndian(UInt64(0))
    bytes.appendBigEndian(UInt32(0))
    bytes.appendBigEndian(UInt32(geometry.clusterBits))
    bytes.appendBigEndian(diskByteCount)
    bytes.appendBigEndian(encryptionMethod)
    bytes.appendBigEndian(UInt32(l1EntryCount))
    bytes.appendBigEndian(l1TableOffset.byteOffset)
    bytes.appendBigEndian(refcountTableOffset.byteOffset)
    bytes.appendBigEndian(UInt32(refcountTableClusterCount))
    bytes.appendBigEndian(UInt32(snapshotCount))
    bytes.appendBigEndian(snapshotTableOffset.byteOffset)
    if version == 3 {
      bytes.appendBigEndian(incompatibleFeatures.rawValue)
      bytes.appendBigEndian(compatibleFeatures.rawValue)
      bytes.appendBigEndian(autoclearFeatures.rawValue)
      bytes.appendBigEndian(UInt32(geometry.refcountOrder))
      bytes.appendBigEndian(UInt32(headerByteCount))
      if headerByteCount > Self.version3ByteCountMin {
        bytes.append(compressionType)
        bytes += unknownFieldBytes
      }
    }
    precondition(bytes.count == headerByteCount, "the header's fields do not fill its length")
    return bytes
  }
}

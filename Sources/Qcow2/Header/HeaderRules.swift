// SPDX-License-Identifier: Apache-2.0
//
// What must hold in a qcow2 header, and what this program insists on to use an image.
// Spec: qcow2.rst, "Header"; limits beyond the text are those of QEMU. This file performs no I/O.

import BlockTypes

extension Header {
  /// Checks that the tables are where tables can be and fit in the file.
  func requireConsistentTables(fileByteCount: UInt64) throws(ImageError) {
    guard diskByteCount <= Self.fileByteCountMax else {
      throw ImageError(.corrupt, "the disk's size does not fit in 63 bits", at: .field(24))
    }
    try requireTable(
      "the L1 table", at: l1TableOffset, byteCount: UInt64(l1EntryCount) * 8,
      byteCountMax: UInt64(Self.l1TableByteCountMax), fileByteCount: fileByteCount, field: 40)
    guard l1EntryCount >= geometry.l1EntryCount(forDiskOf: diskByteCount) else {
      throw ImageError(
        .corrupt, "the L1 table's \(l1EntryCount) entries are too few for the disk's size",
        at: .field(36))
    }
    guard refcountTableClusterCount > 0 else {
      throw ImageError(.corrupt, "the image has no refcount table", at: .field(56))
    }
    try requireTable(
      "the refcount table", at: refcountTableOffset,
      byteCount: UInt64(refcountTableClusterCount) << UInt64(geometry.clusterBits),
      byteCountMax: UInt64(Self.refcountTableByteCountMax), fileByteCount: fileByteCount, field: 48)
    guard snapshotCount <= Self.snapshotCountMax else {
      throw ImageError(
        .corrupt, "\(snapshotCount) snapshots are more than \(Self.snapshotCountMax)",
        at: .field(60))
    }
    // A snapshot's entry has at least 40 bytes; the table's own reader checks the rest.
    try requireTable(
      "the snapshot table", at: snapshotTableOffset, byteCount: UInt64(snapshotCount) * 40,
      byteCountMax: .max, fileByteCount: fileByteCount, field: 64)
  }

  private func requireTable(
    _ name: String, at offset: HostOffset, byteCount: UInt64, byteCountMax: UInt64,
    fileByteCount: UInt64, field: UInt64
  ) throws(ImageError) {
    guard byteCount <= byteCountMax else {
      throw ImageError(
        .corrupt, "\(name) has \(byteCount) bytes, more than \(byteCountMax)", at: .field(field))
    }
    guard offset.byteOffset.isAligned(to: geometry.clusterByteCount) else {
      throw ImageError(.corrupt, "\(name) does not start at a cluster", at: .field(field))
    }
    let (end, overflows) = offset.byteOffset.addingReportingOverflow(byteCount)
    guard !overflows, end <= Self.fileByteCountMax else {
      throw ImageError(.corrupt, "\(name) passes the largest file offset", at: .field(field))
    }
    guard byteCount > 0 else { return }
    guard offset.byteOffset > 0 else {
      throw ImageError(.corrupt, "\(name) lies on the header", at: .field(field))
    }
    guard end <= fileByteCount else {
      throw ImageError(
        .truncated, "\(name) ends at byte \(end), but the file has only \(fileByteCount) bytes",
        at: .field(field))
    }
  }

  /// Checks that the feature bits agree with the fields that they announce.
  func requireConsistentFeatures() throws(ImageError) {
    guard (compressionType != 0) == incompatibleFeatures.contains(.compressionType) else {
      throw ImageError(
        .corrupt, "the compression type contradicts its feature bit", at: .field(104))
    }
    guard
      !autoclearFeatures.contains(.rawExternalData)
        || incompatibleFeatures.contains(.externalDataFile)
    else {
      throw ImageError(
        .corrupt, "raw external data is announced without an external data file", at: .field(88))
    }
    guard encryptionMethod <= Self.encryptionLUKS else {
      throw ImageError(
        .unsupported, "the encryption method \(encryptionMethod) is not known", at: .field(32))
    }
    guard (try encryptionArea() != nil) == (encryptionMethod == Self.encryptionLUKS) else {
      throw ImageError(
        .corrupt, "the encryption method contradicts the header extension of LUKS", at: .field(32))
    }
  }

  /// Refuses, by name, an image that needs what this program does not do.
  ///
  /// - Parameter needsNoKey: data that LUKS encrypts is decrypted with a key, or not looked at.
  public func requireSupported(
    forWriting: Bool, needsNoKey: Bool = false
  ) throws(ImageError) {
    try requireKnownFeatures()
    if encryptionMethod == Self.encryptionAES {
      throw ImageError(
        .unsupported,
        "the image is encrypted with the old AES method, which is broken and not supported; "
          + "convert it (qemu-img convert, to encrypt.format=luks)")
    }
    if encryptionMethod != 0, !needsNoKey {
      throw ImageError(.unsupported, "the image is encrypted (LUKS), and there is no key for it")
    }
    if encryptionMethod != 0, diskByteCount % 512 != 0 {
      throw ImageError(
        .unsupported,
        "the disk's size is no multiple of 512 bytes, which are the unit of encryption")
    }
    try requireUsableDataFile(forWriting: forWriting)
    if compressionType > Self.compressionTypeMax {
      throw ImageError(.unsupported, unsupported("compression of type \(compressionType)"))
    }
    if forWriting { try requireWritable() }
  }

  /// Checks what must hold for an image that keeps its data in another file.
  private func requireUsableDataFile(forWriting: Bool) throws(ImageError) {
    guard incompatibleFeatures.contains(.externalDataFile) else { return }
    guard let name = externalDataFile, !name.isEmpty, !name.utf8.contains(0) else {
      throw ImageError(
        .corrupt, "the image keeps its data in an external data file, and no name is recorded")
    }
    // qcow2.rst, "autoclear_features": a raw data file shows the whole disk by itself.
    guard backingFile == nil || !autoclearFeatures.contains(.rawExternalData) else {
      throw ImageError(.corrupt, "the image has raw external data and a backing file")
    }
    // A cluster of the data file has one place only, so nothing in it can be shared.
    guard snapshotCount == 0 || !forWriting else {
      throw ImageError(
        .unsupported, "the image has an external data file and internal snapshots")
    }
  }

  /// Refuses, by name, an image with features that nobody told us of: not even its tables may be
  /// touched, or counted. The others do not change who references what.
  public func requireKnownFeatures() throws(ImageError) {
    let unknown = incompatibleFeatures.subtracting(.known)
    guard unknown.isEmpty else {
      throw ImageError(
        .unsupported, "the image needs unknown features: \(names(of: unknown))")
    }
  }

  private func requireWritable() throws(ImageError) {
    if isMarkedCorrupt {
      throw ImageError(
        .corrupt,
        "the image is marked corrupt; repair it (strata check -r all) or open it read-only")
    }
    guard diskByteCount % 512 == 0 else {
      throw ImageError(
        .unsupported,
        "the disk's size is no multiple of 512 bytes; open it read-only or resize it "
          + "(qemu-img resize)")
    }
  }

  /// Refuses an image whose bitmaps a writer who does not keep them up would make stale.
  public func requireNoBitmaps() throws(ImageError) {
    if hasPersistentBitmaps {
      throw ImageError(
        .unsupported,
        "writing would make the image's persistent bitmaps stale; open it read-only, or remove "
          + "them (strata bitmap remove)")
    }
  }

  private func unsupported(_ feature: String) -> String {
    "the image uses \(feature), which is not supported; convert it (qemu-img convert -O qcow2)"
  }

  /// The bits as the image's own table names them, or by number.
  private func names(of features: IncompatibleFeatures) -> String {
    let rows = featureNames
    return (0..<64).filter { features.rawValue >> UInt64($0) & 1 == 1 }.map { bit in
      let row = rows.first { $0.field == .incompatible && Int($0.bit) == bit }
      return row.map { "\($0.name) (bit \(bit))" } ?? "bit \(bit)"
    }.joined(separator: ", ")
  }
}

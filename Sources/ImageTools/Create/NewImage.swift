// SPDX-License-Identifier: Apache-2.0
//
// The content of an image that is about to be created, and how it gets into the file.

import BlockTypes
import Encryption
import LinuxIO
import Qcow2

/// A new image, computed and checked before the file is touched.
struct NewImage {
  let path: String
  let format: ImageFormat
  let options: CreateOptions
  let diskByteCount: UInt64
  /// nil for a raw image.
  private let qcow2: (header: [UInt8], layout: NewImageLayout)?
  /// nil for an image that is not encrypted.
  private let volume: NewVolume?

  init(
    path: String, format: ImageFormat, options: CreateOptions, key: SecretBytes?
  ) throws(ImageFault) {
    self.path = path
    self.format = format
    self.options = options
    self.diskByteCount = options.diskByteCount ?? 0
    guard format == .qcow2 else {
      guard options.preallocation != .metadata || options.dataFile != nil else {
        throw ImageFault(
          path, "a raw image has no tables to preallocate",
          wayOut: "use preallocation=falloc or full", kind: .refused)
      }
      self.qcow2 = nil
      self.volume = nil
      return
    }
    let volume =
      options.encryption.isWanted
      ? try NewVolume(options.encryption, key: key, path: path) : nil
    self.volume = volume
    do throws(ImageError) {
      var header = Self.header(options, diskByteCount: diskByteCount)
      let layout = try NewImageLayout(
        geometry: header.geometry, diskByteCount: diskByteCount,
        encryptionByteCount: UInt64(volume?.bytes.count ?? 0))
      layout.apply(to: &header)
      self.qcow2 = (try header.encode(), layout)
    } catch {
      throw ImageFault(path, error)
    }
  }

  /// The header of a qcow2 image with these options, without the places of its tables.
  static func header(_ options: CreateOptions, diskByteCount: UInt64) -> Header {
    let geometry = ClusterGeometry(
      clusterBits: options.clusterBits, refcountOrder: options.refcountOrder,
      hasSubclusters: options.hasSubclusters)
    var header = Header(
      version: options.version, geometry: geometry, diskByteCount: diskByteCount)
    header.backingFile = options.backingFile
    header.backingFormat = options.backingFormat?.rawValue
    if options.usesLazyRefcounts { header.compatibleFeatures.insert(.lazyRefcounts) }
    if options.codec != .deflate {
      header.compressionType = options.codec.rawValue
      header.incompatibleFeatures.insert(.compressionType)
    }
    if let dataFile = options.dataFile {
      header.incompatibleFeatures.insert(.externalDataFile)
      if options.dataIsRaw { header.autoclearFeatures.insert(.rawExternalData) }
      header.extensions.insert(
        HeaderExtension(
          type: HeaderExtension.externalDataFileType, content: Array(dataFile.utf8)), at: 0)
    }
    return header
  }

  /// Writes the image and makes it and its name durable.
  func write(to storage: LayerFile, isNew: Bool) throws(ImageFault) {
    let isRegular = try storage.isRegularFile()
    if isRegular { try storage.truncate(to: 0) }
    // Tables of a raw data file on a device are made as they are needed. So are those of one that
    // is encrypted: decrypted, its hole would read as noise.
    let mapsAll = options.dataIsRaw && isRegular && volume == nil
    if format == .qcow2, options.preallocation != .off || mapsAll {
      try PreallocatedImage(options, diskByteCount: diskByteCount).write(to: storage)
    } else if let qcow2 {
      try writeTables(qcow2.layout, to: storage, isRegular: isRegular)
      try storage.synchronize()
      try storage.write(qcow2.header, at: 0)
    } else if isRegular {
      try storage.truncate(to: diskByteCount)
      try storage.take(ByteRange(start: 0, end: diskByteCount), options.preallocation)
    } else {
      let available = try storage.byteCount()
      guard diskByteCount <= available else {
        throw ImageFault(
          path, "the device has only \(available) bytes", wayOut: "ask for a smaller image",
          kind: .refused)
      }
    }
    try storage.synchronize()
    guard isNew else { return }
    do throws(SystemError) {
      try FolderEntry.synchronizeFolder(of: path)
    } catch {
      throw ImageFault(path, error)
    }
  }

  private func writeTables(
    _ layout: NewImageLayout, to storage: LayerFile, isRegular: Bool
  ) throws(ImageFault) {
    let l1Start = layout.l1TableOffset.byteOffset
    let end = l1Start + UInt64(layout.l1EntryCount) * 8
    if isRegular {
      // Reads as zeroes: the empty L1 table, and a header that is none yet.
      try storage.truncate(to: end)
    } else {
      let clusterByteCount = layout.geometry.clusterByteCount
      try writeZeroes(to: storage, from: 0, until: clusterByteCount)
      try writeZeroes(to: storage, from: l1Start, until: end.alignedUp(to: clusterByteCount))
    }
    try storage.write(layout.refcountTableBytes(), at: layout.refcountTableOffset.byteOffset)
    try storage.write(layout.refcountBlockBytes(), at: layout.refcountBlocksOffset.byteOffset)
    if let volume { try storage.write(volume.bytes, at: layout.encryptionOffset.byteOffset) }
  }

  private func writeZeroes(
    to storage: LayerFile, from start: UInt64, until end: UInt64
  ) throws(ImageFault) {
    var offset = start
    while offset < end {
      let byteCount = min(1 << 20, end - offset)
      try storage.write([UInt8](repeating: 0, count: Int(byteCount)), at: offset)
      offset += byteCount
    }
  }

  /// The line that qemu-img prints for the same image.
  func summary(requestedByteCount: UInt64?) -> String {
    let size = requestedByteCount ?? diskByteCount
    guard format == .qcow2 else {
      let more = options.givenPreallocation.map { " preallocation=\($0)" } ?? ""
      return "Formatting '\(path)', fmt=raw size=\(size)\(more)"
    }
    var line = "Formatting '\(path)', fmt=qcow2 "
    for option in options.encryption.given { line += "\(option) " }
    line += "cluster_size=\(1 << options.clusterBits) "
    line += "extended_l2=\(options.hasSubclusters ? "on" : "off") "
    if let given = options.givenPreallocation { line += "preallocation=\(given) " }
    line += "compression_type=\(options.codec.name) size=\(size)"
    if let compatibility = options.compatibility { line += " compat=\(compatibility)" }
    if let backingFile = options.backingFile { line += " backing_file=\(backingFile)" }
    if let backingFormat = options.backingFormat {
      line += " backing_fmt=\(backingFormat.rawValue)"
    }
    if let dataFile = options.dataFile { line += " data_file=\(dataFile)" }
    if options.dataIsRaw { line += " data_file_raw=on" }
    line += " lazy_refcounts=\(options.usesLazyRefcounts ? "on" : "off")"
    return line + " refcount_bits=\(1 << options.refcountOrder)"
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What the two kinds of targets are like, and how each ends. Writes the end of the file.

import BlockTypes
import LinuxIO
import Qcow2

/// A target that was computed and checked before a file is made.
struct ConvertContent {
  var target: ConvertTarget
  let cutter: ConvertCutter
  /// The plan's pieces begin at multiples of this.
  let gridByteCount: UInt64

  /// Raw pieces begin at multiples of this, so that small runs of zeroes stay in one piece.
  private static let rawGridByteCount: UInt64 = 65_536

  init(
    path: String, diskByteCount: UInt64, hasBase: Bool, options: ConvertOptions
  ) throws(ImageFault) {
    let isSparse = options.sparseByteCount > 0
    switch options.targetFormat {
    case .raw:
      target = .raw
      gridByteCount = Self.rawGridByteCount
      cutter = ConvertCutter(
        cellByteCount: isSparse ? options.sparseByteCount : Int(ConvertPlan.pieceByteCountMax),
        isSparse: isSparse, codec: nil, hasBase: false, hasZeroClusters: false, fillsCells: false)
    case .qcow2:
      var create = options.create
      create.diskByteCount = diskByteCount
      let header: Header
      do throws(ImageError) {
        header = NewImage.header(create, diskByteCount: diskByteCount)
        if options.compresses { try create.codec.load() }
        target = .qcow2(try AppendedImage(header))
      } catch {
        throw ImageFault(path, error)
      }
      guard header.encryptionMethod == 0,
        header.incompatibleFeatures.isSubset(of: [.compressionType, .extendedL2])
      else {
        throw ImageFault(
          path, "a conversion does not make images with these options",
          wayOut: "leave them out, or use qemu-img convert", kind: .unsupported)
      }
      gridByteCount = max(header.geometry.clusterByteCount, Self.rawGridByteCount)
      cutter = ConvertCutter(
        cellByteCount: Int(header.geometry.clusterByteCount), isSparse: isSparse,
        codec: options.compresses ? create.codec : nil, hasBase: hasBase,
        hasZeroClusters: header.version >= 3, fillsCells: true)
    }
  }

  /// Writes what comes last and makes all of it durable: the header only when the rest is.
  func finish(_ file: LayerFile) throws(ImageFault) {
    if case .qcow2(let image) = target {
      let end: (writes: [AppendedImage.Write], header: [UInt8], fileByteCount: UInt64)
      do throws(ImageError) { end = try image.finish() } catch {
        throw ImageFault(file.path, error)
      }
      for write in end.writes { try file.write(write.bytes, at: write.offset.byteOffset) }
      try file.truncate(to: end.fileByteCount)
      try file.synchronize()
      try file.write(end.header, at: 0)
    }
    try file.synchronize()
  }
}

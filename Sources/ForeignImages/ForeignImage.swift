// SPDX-License-Identifier: Apache-2.0
//
// An image of another program, opened for reading: what it is, and where its disk's bytes are.
// Asks for bytes by `ForeignSource`; this file performs no I/O.

import BlockTypes

/// A foreign image.
public struct ForeignImage: Sendable {
  private enum Content: Sendable {
    case vmdk(VMDKImage)
    case vhd(BlockMap<VHDImage>)
    case vhdx(BlockMap<VHDXImage>)
    case vdi(BlockMap<VDIImage>)
    case qcow1(BlockMap<QCOW1Image>)
    case parallels(BlockMap<ParallelsImage>)
    /// The bytes of the file, from the first one on.
    case flat
  }

  public let format: ForeignFormat
  public let diskByteCount: UInt64
  /// Bytes of the units that the disk is cut into; nil where it is not.
  public let blockByteCount: UInt64?
  /// What kind of its format the image is, such as "dynamic"; nil where there is but one.
  public let subformat: String?
  private var content: Content

  /// Reads what an image says about itself.
  ///
  /// - Parameters:
  ///   - files: the file that the user named; files beside it that the image consists of are added.
  ///   - beside: opens a file in the same folder. nil: no other file is opened; a description is
  ///     read, and parts in other files count as zeroes.
  /// - Throws: a failure of the source, or its `fault` with what is wrong with the image.
  public init<Source: ForeignSource>(
    _ format: ForeignFormat, files: inout [Source],
    beside: ((String) throws(Source.Failure) -> Source)?
  ) throws(Source.Failure) {
    precondition(files.count == 1, "an image is opened by one file")
    let source = files[0]
    self.format = format
    switch format {
    case .vmdk:
      let image = try VMDKImage(&files, beside: beside)
      (diskByteCount, blockByteCount) = (image.byteCount, image.grainByteCount)
      subformat = image.createType.isEmpty ? nil : image.createType
      content = .vmdk(image)
    case .vpc:
      let footer = try VHDImage.footer(of: source)
      diskByteCount = footer.diskByteCount
      switch footer.type {
      case .fixed:
        guard diskByteCount <= source.byteCount - UInt64(VHDFooter.byteCount) else {
          throw source.fault(
            .truncated,
            "the file has \(source.byteCount) bytes, which are too few for a disk of "
              + "\(diskByteCount)")
        }
        (subformat, blockByteCount, content) = ("fixed", nil, .flat)
      case .dynamic:
        let image = try VHDImage(source, footer: footer)
        (subformat, blockByteCount) = ("dynamic", image.blockByteCount)
        content = .vhd(BlockMap(image))
      case .differencing:
        throw source.fault(
          .unsupported,
          "the VHD is a difference to another one, which is not supported; merge it with its "
            + "parent first")
      }
    case .vhdx:
      let image = try VHDXImage(source)
      (diskByteCount, blockByteCount) = (image.byteCount, image.blockByteCount)
      subformat = image.isPreallocated ? "fixed" : "dynamic"
      content = .vhdx(BlockMap(image))
    case .vdi:
      let image = try VDIImage(source)
      (diskByteCount, blockByteCount) = (image.byteCount, image.blockByteCount)
      subformat = image.isPreallocated ? "static" : "dynamic"
      content = .vdi(BlockMap(image))
    case .qcow:
      let image = try QCOW1Image(source)
      (diskByteCount, blockByteCount) = (image.byteCount, image.blockByteCount)
      (subformat, content) = (nil, .qcow1(BlockMap(image)))
    case .parallels:
      let image = try ParallelsImage(source)
      (diskByteCount, blockByteCount) = (image.byteCount, image.blockByteCount)
      (subformat, content) = (nil, .parallels(BlockMap(image)))
    }
  }

  /// What the image says about `offset`, which lies on the disk, and the bytes behind it.
  ///
  /// Offsets that grow let it see two blocks that share a place.
  ///
  /// - Parameter byteCountMax: at least 1.
  public mutating func extent<Source: ForeignSource>(
    at offset: UInt64, byteCountMax: UInt64, in files: [Source]
  ) throws(Source.Failure) -> ForeignExtent {
    precondition(offset < diskByteCount, "an offset lies behind the disk")
    let limit = min(byteCountMax, diskByteCount - offset)
    // Each table is taken out while it works, so that it is not copied.
    let taken = content
    content = .flat
    switch consume taken {
    case .flat:
      return ForeignExtent(
        byteCount: limit, content: .data(file: 0, offset: offset, mayHaveHoles: true))
    case .vmdk(var image):
      defer { content = .vmdk(image) }
      return try image.extent(at: offset, byteCountMax: limit, in: files)
    case .vhd(var map):
      defer { content = .vhd(map) }
      return try map.extent(at: offset, byteCountMax: limit, file: 0, in: files[0])
    case .vhdx(var map):
      defer { content = .vhdx(map) }
      return try map.extent(at: offset, byteCountMax: limit, file: 0, in: files[0])
    case .vdi(var map):
      defer { content = .vdi(map) }
      return try map.extent(at: offset, byteCountMax: limit, file: 0, in: files[0])
    case .qcow1(var map):
      defer { content = .qcow1(map) }
      return try map.extent(at: offset, byteCountMax: limit, file: 0, in: files[0])
    case .parallels(var map):
      defer { content = .parallels(map) }
      return try map.extent(at: offset, byteCountMax: limit, file: 0, in: files[0])
    }
  }
}

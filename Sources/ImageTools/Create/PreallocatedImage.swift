// SPDX-License-Identifier: Apache-2.0
//
// A new qcow2 image in which all of the disk has a place from the start. Writes and takes space.
// Source: qemu-img(1), "preallocation"; qcow2.rst, "Cluster mapping".

import BlockTypes
import LinuxIO
import Qcow2

/// An image without a backing file whose clusters are all allocated.
struct PreallocatedImage {
  private let options: CreateOptions
  private let diskByteCount: UInt64

  /// Clusters that get their places at once.
  private static let stepClusterCount: UInt64 = 1 << 14

  init(_ options: CreateOptions, diskByteCount: UInt64) {
    self.options = options
    self.diskByteCount = diskByteCount
  }

  /// Writes the image into an empty file, the header last.
  func write(to storage: LayerFile) throws(ImageFault) {
    guard try storage.isRegularFile() else {
      throw ImageFault(
        storage.path, "an image on a device is not preallocated", wayOut: "leave it out",
        kind: .unsupported)
    }
    let header = NewImage.header(options, diskByteCount: diskByteCount)
    let clusterCount = header.geometry.clusterCount(for: diskByteCount)
    var image: AppendedImage
    do throws(ImageError) { image = try AppendedImage(header) } catch {
      throw ImageFault(storage.path, error)
    }
    var cluster: UInt64 = 0
    while cluster < clusterCount {
      let count = min(Self.stepClusterCount, clusterCount - cluster)
      let place = try place(&image, cluster, Int(count), storage)
      if let place, options.preallocation == .full {
        let end = place.byteOffset + count << UInt64(header.geometry.clusterBits)
        try storage.take(ByteRange(start: place.byteOffset, end: end), .full)
      }
      try write(image.takeWrites(), to: storage)
      cluster += count
    }
    try finish(image, storage)
  }

  /// Where in the image the clusters lie; nil when they are in a data file.
  private func place(
    _ image: inout AppendedImage, _ cluster: UInt64, _ count: Int, _ storage: LayerFile
  ) throws(ImageFault) -> HostOffset? {
    do throws(ImageError) {
      guard options.dataFile == nil else {
        try image.appendExternal(cluster: cluster, count: count)
        return nil
      }
      return try image.append(cluster: cluster, count: count, isUnwritten: true)
    } catch {
      throw ImageFault(storage.path, error)
    }
  }

  private func finish(
    _ image: consuming AppendedImage, _ storage: LayerFile
  ) throws(ImageFault) {
    let end: (writes: [AppendedImage.Write], header: [UInt8], fileByteCount: UInt64)
    do throws(ImageError) { end = try image.finish() } catch {
      throw ImageFault(storage.path, error)
    }
    try write(end.writes, to: storage)
    try storage.truncate(to: end.fileByteCount)
    if options.preallocation == .falloc {
      try storage.take(ByteRange(start: 0, end: end.fileByteCount), .falloc)
    }
    try storage.synchronize()
    try storage.write(end.header, at: 0)
  }

  private func write(
    _ writes: [AppendedImage.Write], to storage: LayerFile
  ) throws(ImageFault) {
    for write in writes { try storage.write(write.bytes, at: write.offset.byteOffset) }
  }
}

extension LayerFile {
  private static let zeroes = [UInt8](repeating: 0, count: 1 << 20)

  /// Takes the space of a range whose bytes are zeroes.
  func take(
    _ range: ByteRange, _ mode: CreateOptions.Preallocation
  ) throws(ImageFault) {
    switch mode {
    case .off, .metadata: return
    case .falloc:
      guard !range.isEmpty else { return }
      do throws(SystemError) { try file.provision(range) } catch {
        throw ImageFault(path, error)
      }
    case .full:
      var offset = range.start
      while offset < range.end {
        let count = min(UInt64(Self.zeroes.count), range.end - offset)
        try write(Array(Self.zeroes[..<Int(count)]), at: offset)
        offset += count
      }
    }
  }
}

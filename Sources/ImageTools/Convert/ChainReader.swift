// SPDX-License-Identifier: Apache-2.0
//
// A backing chain of ours as a source of bytes: which layer's file holds each run, and which
// clusters have to be unpacked. Reads tables.

import BlockTypes
import Compression
import LinuxIO
import Qcow2

/// A backing chain, read offline.
struct ChainReader {
  let layers: [OpenedLayer]
  private var maps: [LayerMap] = []
  private var ciphers: [SharedCipher?] = []

  init(_ layers: [OpenedLayer]) throws(ImageFault) {
    self.layers = layers
    for layer in layers {
      maps.append(try LayerMap(layer, tellsSealed: true))
      ciphers.append(layer.cipher.map(SharedCipher.init))
      guard let header = layer.header else { continue }
      precondition(
        header.encryptionMethod == 0 || layer.cipher != nil, "an encrypted layer without its key")
      do throws(ImageError) {
        try ClusterCodec(rawValue: header.compressionType)?.load()
      } catch {
        throw ImageFault(layer.path, error)
      }
    }
  }

  mutating func run(
    at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> SourceRun {
    try run(of: try Map.resolve(at: offset, end: offset + byteCountMax, &maps))
  }

  /// What these layers say of the disk at `offset`; no run where they leave it to what lies below
  /// the last of them.
  mutating func ownRun(
    at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> (byteCount: UInt64, run: SourceRun?) {
    let found = try Map.resolve(at: offset, end: offset + byteCountMax, &maps)
    // Where the search ended further up, a layer that is too short hides all below it.
    let isLeft = !found.isPresent && found.depth == layers.count - 1
    return (found.byteCount, isLeft ? nil : try run(of: found))
  }

  private mutating func run(of found: MapExtent) throws(ImageFault) -> SourceRun {
    let offset = found.start
    if found.isZero || !found.isData {
      return SourceRun(byteCount: found.byteCount, content: .zero)
    }
    let layer = layers[found.depth]
    if let place = found.hostOffset {
      let file = layer.dataStorage ?? layer.storage
      if let cipher = ciphers[found.depth] {
        return SourceRun(byteCount: found.byteCount, content: .sealed(file, place, cipher))
      }
      // As QEMU reads a file that was cut: the format has no rule for it.
      return SourceRun(
        byteCount: found.byteCount, content: .stored(file, place, endsInZeroes: true))
    }
    guard let header = layer.header, let codec = ClusterCodec(rawValue: header.compressionType)
    else {
      preconditionFailure("a compressed cluster in a layer without a codec")
    }
    let stored = try maps[found.depth].compressedRange(at: offset)
    let size = header.geometry.clusterByteCount
    let start = offset.alignedDown(to: size)
    let unit = SourceUnit(
      file: layer.storage, stored: stored, wrapping: .cluster(codec),
      unit: ByteRange(start: start, end: start + size))
    return SourceRun(
      byteCount: min(found.byteCount, start + size - offset), content: .packed(unit))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A run of a source's disk, and how its bytes come into memory. Reads files; takes memory for one
// compressed unit at a time.

import BlockTypes
import Compression
import LinuxIO
import Synchronization

/// A run of equal kind.
struct SourceRun: Sendable {
  enum Content: Sendable {
    case zero
    /// In the file from the offset on. What lies behind the file's end reads as zeroes if
    /// `endsInZeroes`, and is a fault of the image if not.
    case stored(LayerFile, UInt64, endsInZeroes: Bool)
    /// As `stored`, encrypted; whole sectors lie in the file.
    case sealed(LayerFile, UInt64, SharedCipher)
    case packed(SourceUnit)
  }

  /// At least 1.
  var byteCount: UInt64
  var content: Content

  var isZero: Bool {
    if case .zero = content { return true }
    return false
  }
}

/// A compressed unit of the disk, which is read whole.
struct SourceUnit: Sendable {
  enum Wrapping: Sendable {
    case cluster(ClusterCodec)
    case zlib
  }

  let file: LayerFile
  let stored: ByteRange
  let wrapping: Wrapping
  /// Where the unit lies on the disk.
  let unit: ByteRange
}

extension SourceRun {
  /// Puts the run's bytes into `buffer`, from `index` on.
  ///
  /// - Parameter offset: where the run starts on the disk.
  func load(
    at offset: UInt64, into buffer: inout [UInt8], _ index: Int
  ) throws(ImageFault) {
    let part = index..<(index + Int(byteCount))
    switch content {
    case .zero: buffer.clear(part)
    case .sealed(let file, let place, let cipher):
      // A disk may end inside a sector.
      let sealedCount = Int(byteCount.alignedUp(to: UInt64(CipherSector.byteCount)))
      var sectors = [UInt8](repeating: 0, count: sealedCount)
      _ = try Self.read(file, at: place, into: &sectors, 0..<sealedCount, diskOffset: offset)
      guard cipher.unseal(&sectors, firstSector: place >> CipherSector.bits) else {
        throw ImageFault(file.path, "the cipher fails (byte \(offset) of the disk)")
      }
      buffer.replaceSubrange(part, with: sectors[..<part.count])
    case .stored(let file, let place, let endsInZeroes):
      let count = try Self.read(file, at: place, into: &buffer, part, diskOffset: offset)
      guard count == part.count || endsInZeroes else {
        throw ImageFault(
          file.path, "the file ends at byte \(place + UInt64(count)), inside a block of the disk",
          kind: .truncated)
      }
      buffer.clear((index + count)..<part.upperBound)
    case .packed(let unit):
      let plain = try unit.unpack()
      let start = Int(offset - unit.unit.start)
      guard start + part.count <= plain.count else {
        throw ImageFault(
          unit.file.path,
          "the compressed unit at byte \(unit.stored.start) gives too few bytes (byte \(offset) of "
            + "the disk)", kind: .corrupt)
      }
      buffer.replaceSubrange(part, with: plain[start..<(start + part.count)])
    }
  }
}

extension SourceRun {
  private static func read(
    _ file: LayerFile, at place: UInt64, into buffer: inout [UInt8], _ part: Range<Int>,
    diskOffset: UInt64
  ) throws(ImageFault) -> Int {
    do throws(SystemError) {
      return try file.file.read(at: place, into: &buffer, part)
    } catch {
      throw ImageFault(
        file.path, "\(error) (byte \(place) of the file, byte \(diskOffset) of the disk)",
        wayOut: ImageFault.wayOut(of: error.errno))
    }
  }
}

/// The cipher of a layer for several threads, which it decrypts for one by one.
final class SharedCipher: Sendable {
  private let cipher: Mutex<any SectorCipher>

  init(_ cipher: any SectorCipher) { self.cipher = Mutex(cipher) }

  /// Decrypts whole sectors; false when the cipher fails.
  func unseal(_ sectors: inout [UInt8], firstSector: UInt64) -> Bool {
    cipher.withLock { sectors.unseal(with: $0, firstSector: firstSector) }
  }
}

extension SourceUnit {
  /// The plain bytes, which are fewer than the unit has when a stream ends before.
  fileprivate func unpack() throws(ImageFault) -> [UInt8] {
    let packed = try file.read(at: stored.start, byteCount: Int(stored.byteCount))
    let size = Int(unit.byteCount)
    let plain =
      switch wrapping {
      case .cluster(let codec): codec.unpack(packed, byteCount: size)
      case .zlib: ZlibStream.unpack(packed, byteCountMax: size)
      }
    guard let plain else {
      throw ImageFault(
        file.path,
        "the compressed unit at byte \(stored.start) is damaged (byte \(unit.start) of the disk)",
        kind: .corrupt)
    }
    return plain
  }
}

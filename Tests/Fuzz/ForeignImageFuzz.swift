// SPDX-License-Identifier: Apache-2.0
//
// Images of other programs: a right image of each format, changed at places that the fuzzer
// chooses, with checksums mended or not, and read from its start to its end. Also descriptors and
// whole files as the fuzzer invents them. This file performs no I/O.

import BlockTypes
import ForeignImages

func fuzzForeignImage(_ bytes: [UInt8]) {
  var input = FuzzInput(bytes)
  let format = input.choice(ForeignFormat.allCases)
  let kind = input.byte()
  var file = FuzzFile()
  if kind & 3 == 0 {
    let content = input.all()
    file.byteCount = UInt64(content.count)
    file.put(content, at: 0)
  } else {
    file.fill(with: format, variant: kind >> 4)
    let hotPlaces = file.writtenPlaces
    while !input.isEmpty {
      let place = input.choice(hotPlaces) + UInt64(input.integer(UInt16.self) % 4096)
      file.put(input.bytes(1 + Int(input.byte() % 16)), at: place)
    }
    if kind & 4 != 0 { file.mendChecksums() }
    if kind & 8 != 0 { file.byteCount /= 2 }
  }
  read(file, as: format, extentCountMax: 4096)
}

private func read(_ file: FuzzFile, as format: ForeignFormat, extentCountMax: Int) {
  var files = [file]
  do throws(ImageError) {
    var image = try ForeignImage(format, files: &files) { (name) throws(ImageError) in
      require(!name.isEmpty && !name.contains("/"), "a file elsewhere is asked for")
      return file
    }
    require(image.diskByteCount <= UInt64(Int64.max), "a disk that is too large")
    var offset: UInt64 = 0
    for _ in 0..<extentCountMax where offset < image.diskByteCount {
      let limit = image.diskByteCount - offset
      let extent = try image.extent(at: offset, byteCountMax: limit, in: files)
      require((1...limit).contains(extent.byteCount), "an extent of no or too many bytes")
      switch extent.content {
      case .absent, .zero: break
      case .data(let index, let place, _):
        let end = place.addingReportingOverflow(extent.byteCount)
        require(!end.overflow && end.partialValue <= files[index].byteCount, "data past the file")
      case .packed(let unit):
        require(unit.unit.start <= offset && offset < unit.unit.end, "a unit of another place")
        require(unit.stored.end <= files[unit.file].byteCount, "a unit past the file")
        require(unit.stored.byteCount <= 1 << 27 && unit.unit.byteCount <= 1 << 26, "a huge unit")
      }
      offset += extent.byteCount
    }
  } catch {
    require(!error.reason.isEmpty, "a fault without words")
  }
}

/// A file in memory, of which only the pages exist that were written.
struct FuzzFile: ForeignSource {
  var byteCount: UInt64 = 0
  private var pages: [UInt64: [UInt8]] = [:]
  private static let pageByteCount: UInt64 = 4096

  /// The starts of the pages that were written.
  var writtenPlaces: [UInt64] { pages.keys.sorted().map { $0 * Self.pageByteCount } }

  mutating func put(_ bytes: [UInt8], at offset: UInt64) {
    for (index, byte) in bytes.enumerated() {
      let place = offset + UInt64(index)
      pages[
        place / Self.pageByteCount,
        default: [UInt8](repeating: 0, count: Int(Self.pageByteCount))][
          Int(place % Self.pageByteCount)] = byte
    }
  }

  func read(at offset: UInt64, byteCount: Int) throws(ImageError) -> [UInt8] {
    require(byteCount <= 1 << 20, "more than 1 MiB is read at once")
    guard offset < self.byteCount else { return [] }
    let end = min(offset + UInt64(byteCount), self.byteCount)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Int(end - offset))
    var place = offset
    while place < end {
      let start = place % Self.pageByteCount
      let count = min(Self.pageByteCount - start, end - place)
      if let page = pages[place / Self.pageByteCount] {
        bytes += page[Int(start)..<Int(start + count)]
      } else {
        bytes += [UInt8](repeating: 0, count: Int(count))
      }
      place += count
    }
    return bytes
  }

  func fault(_ error: ImageError) -> ImageError { error }

  private func bytes(_ offset: UInt64, _ count: Int) -> [UInt8] {
    do throws(ImageError) { return try read(at: offset, byteCount: count) } catch { return [] }
  }
}

// MARK: Right images

extension FuzzFile {
  private mutating func little(_ value: UInt64, _ width: Int, at offset: UInt64) {
    put((0..<width).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }, at: offset)
  }

  private mutating func big(_ value: UInt64, _ width: Int, at offset: UInt64) {
    put(
      (0..<width).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64(width - 1 - $0))) },
      at: offset)
  }

  fileprivate mutating func fill(with format: ForeignFormat, variant: UInt8) {
    byteCount = 8 << 20
    switch format {
    case .vmdk: fillVMDK(variant)
    case .vpc: fillVHD(variant)
    case .vhdx: fillVHDX()
    case .vdi:
      little(0xbeda_107f, 4, at: 64)
      for (offset, value) in [
        (68, 0x10001), (76, 1), (340, 512), (344, 1024), (360, 512), (368, 3 << 20),
        (376, 1 << 20), (384, 3), (512, 0), (516, 0xffff_ffff), (520, 1),
      ] { little(UInt64(value), offset == 368 ? 8 : 4, at: UInt64(offset)) }
    case .qcow:
      put([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1], at: 0)
      big(3 << 20, 8, at: 24)
      put([12, 9], at: 32)
      big(48, 8, at: 40)
      big(4096, 8, at: 48)
      let entries: [UInt64] = [8192, 0, 12288, 1 << 63 | 100 << 51 | 16384]
      for (index, entry) in entries.enumerated() { big(entry, 8, at: 4096 + UInt64(index) * 8) }
    case .parallels:
      put(Array((variant & 1 == 0 ? "WithoutFreeSpace" : "WithouFreSpacExt").utf8), at: 0)
      for (offset, value) in [(16, 2), (28, 2048), (32, 4), (36, 8192), (64, 2048), (72, 4096)] {
        little(UInt64(value), 4, at: UInt64(offset))
      }
    }
  }

  private mutating func fillVMDK(_ variant: UInt8) {
    if variant & 3 == 3 {
      let text = """
        # Disk DescriptorFile
        version=1
        parentCID=ffffffff
        createType="twoGbMaxExtentFlat"
        RW 8 FLAT "a" 0
        RW 8 ZERO
        RW 100 FLAT "b" 8

        """
      byteCount = UInt64(text.utf8.count)
      return put(Array(text.utf8), at: 0)
    }
    let isCompressed = variant & 1 == 1
    for start in [0, byteCount - 1024] as [UInt64] {
      put(Array("KDMV".utf8), at: start)
      little(3, 4, at: start + 4)
      little(isCompressed ? 0x30005 : 0x5, 4, at: start + 8)
      for (offset, value) in [(12, 4096), (20, 128), (28, 1), (36, 2), (56, 8)] {
        little(UInt64(value), 8, at: start + UInt64(offset))
      }
      little(16, 4, at: start + 44)
      put([0, 0x0a, 0x20, 0x0d, 0x0a, isCompressed ? 1 : 0], at: start + 72)
    }
    little(1, 8, at: byteCount - 1536)
    little(3, 4, at: byteCount - 1524)
    if variant & 2 == 2 { little(.max, 8, at: 56) }
    put(Array("# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"x\"\n".utf8), at: 512)
    little(16, 4, at: 8 * 512)
    little(24, 4, at: 8 * 512 + 4)
    for (index, sector) in [256, 0, 1, 512].enumerated() {
      little(UInt64(sector), 4, at: 16 * 512 + UInt64(index) * 4)
      little(UInt64(index * 128), 8, at: UInt64(sector) * 512)
      if isCompressed { little(100, 4, at: UInt64(sector) * 512 + 8) }
    }
  }

  private mutating func fillVHD(_ variant: UInt8) {
    for start in [0, byteCount - 512] as [UInt64] {
      put(Array("conectix".utf8), at: start)
      big(0x10000, 4, at: start + 12)
      big(512, 8, at: start + 16)
      put(Array("win ".utf8), at: start + 28)
      big(3 << 20, 8, at: start + 48)
      big(UInt64(2 + variant & 1), 4, at: start + 60)
    }
    put(Array("cxsparse".utf8), at: 512)
    for (offset, value, width) in [(16, 1536, 8), (28, 4, 4), (32, 1 << 20, 4)] {
      big(UInt64(value), width, at: 512 + UInt64(offset))
    }
    for (index, sector) in [4, 0xffff_ffff, 3000, 6000].enumerated() {
      big(UInt64(sector), 4, at: 1536 + UInt64(index) * 4)
    }
    mendChecksums()
  }

  private mutating func fillVHDX() {
    put(Array("vhdxfile".utf8), at: 0)
    for (index, place) in [64 << 10, 128 << 10].enumerated() as EnumeratedSequence<[UInt64]> {
      put(Array("head".utf8), at: place)
      little(UInt64(index), 8, at: place + 8)
      little(1, 2, at: place + 66)
      little(1 << 20, 4, at: place + 68)
      little(1 << 20, 8, at: place + 72)
    }
    let table = guid("2dc27766f62342009d64115e9bfd4a08")
    let metadata = guid("8b7ca20647904b9ab8fe575f050f886e")
    for place in [192 << 10, 256 << 10] as [UInt64] {
      put(Array("regi".utf8), at: place)
      little(2, 4, at: place + 8)
      for (index, region) in [(table, 3 << 20), (metadata, 2 << 20)].enumerated() {
        let entry = place + 16 + 32 * UInt64(index)
        put(region.0, at: entry)
        little(UInt64(region.1), 8, at: entry + 16)
        little(1 << 20, 4, at: entry + 24)
        little(1, 4, at: entry + 28)
      }
    }
    let start: UInt64 = 2 << 20
    put(Array("metadata".utf8), at: start)
    let items: [(String, UInt64, Int)] = [
      ("caa16737fa364d43b3b633f0aa44e76b", 1 << 20, 8),
      ("2fa54224cd1b4876b2115dbed83bf4b8", 3 << 20, 8),
      ("8141bf1da96f4709ba47f233a8faab5f", 512, 4),
    ]
    little(UInt64(items.count), 2, at: start + 10)
    for (index, item) in items.enumerated() {
      let entry = start + 32 + 32 * UInt64(index)
      let offset = 65_536 + UInt64(index) * 16
      put(guid(item.0), at: entry)
      little(offset, 4, at: entry + 16)
      little(UInt64(item.2), 4, at: entry + 20)
      little(4, 4, at: entry + 24)
      little(item.1, item.2, at: start + offset)
    }
    for (index, entry) in [4 << 20 | 6, 0, 5 << 20 | 6].enumerated() as EnumeratedSequence<[UInt64]>
    {
      little(entry, 8, at: 3 << 20 + UInt64(index) * 8)
    }
    mendChecksums()
  }

  private func guid(_ digits: String) -> [UInt8] {
    let characters = Array(digits)
    let read = (0..<16).map { UInt8(String(characters[(2 * $0)..<(2 * $0 + 2)]), radix: 16) ?? 0 }
    return [3, 2, 1, 0, 5, 4, 7, 6].map { read[$0] } + read[8...]
  }

  /// Makes the checksums of VHD and VHDX right, wherever their structures are.
  fileprivate mutating func mendChecksums() {
    guard byteCount >= 1 << 20 else { return }
    for (place, count, field) in [(0, 512, 64), (byteCount - 512, 512, 64), (512, 1024, 36)]
      as [(UInt64, Int, Int)]
    {
      let found = bytes(place, count)
      guard found.starts(with: "conectix".utf8) || found.starts(with: "cxsparse".utf8) else {
        continue
      }
      let sum = found.enumerated().reduce(UInt32(0)) {
        (field..<(field + 4)).contains($1.offset) ? $0 : $0 &+ UInt32($1.element)
      }
      big(UInt64(~sum), 4, at: place + UInt64(field))
    }
    for (place, count) in [(64, 4), (128, 4), (192, 64), (256, 64)] as [(UInt64, Int)] {
      var found = bytes(place << 10, count << 10)
      guard found.starts(with: "head".utf8) || found.starts(with: "regi".utf8) else { continue }
      found.replaceSubrange(4..<8, with: [0, 0, 0, 0])
      var value: UInt32 = .max
      for byte in found {
        value ^= UInt32(byte)
        for _ in 0..<8 { value = value & 1 == 1 ? value >> 1 ^ 0x82f6_3b78 : value >> 1 }
      }
      little(UInt64(~value), 4, at: place << 10 + 4)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Extended L2 entries: what each combination of descriptor and bitmap says of a subcluster, and
// which ones are no entries at all. Spec: qcow2.rst, "Extended L2 Entries".

import BlockTypes
import Testing

@testable import Qcow2

@Suite struct `An extended L2 entry` {
  private let geometry = ClusterGeometry(clusterBits: 16, refcountOrder: 4, hasSubclusters: true)
  private let host = L2Entry(normalAt: HostOffset(byteOffset: 0x50000))

  private func entry(
    _ descriptor: L2Entry, allocated: UInt32 = 0, zero: UInt32 = 0
  ) -> ExtendedL2Entry {
    ExtendedL2Entry(descriptor, SubclusterBitmap(allocated: allocated, zero: zero))
  }

  /// `kind count` for each run of the entry.
  private func runs(_ entry: ExtendedL2Entry) -> [String] {
    let kind = entry.clusterKind(in: geometry, hasDataFile: false)
    var found: [String] = []
    var subcluster = 0
    while subcluster < SubclusterBitmap.subclusterCount {
      let run = entry.run(from: subcluster, kind)
      found.append("\(run.kind) \(run.count)")
      subcluster += run.count
    }
    return found
  }

  @Test func `halves what an L2 table maps`() {
    #expect(geometry.l2EntryByteCount == 16)
    #expect(geometry.l2EntryCount == 4096)
    #expect(geometry.tableWordCount == 8192)
    #expect(geometry.l2CoverageByteCount == 256 << 20)
    #expect(geometry.subclusterByteCount == 2048)
    #expect(geometry.l1Index(of: GuestOffset(byteOffset: 256 << 20)) == 1)
    #expect(geometry.l2Index(of: GuestOffset(byteOffset: (256 << 20) + 65_536)) == 1)
    #expect(geometry.subclusterIndex(of: GuestOffset(byteOffset: 65_535)) == 31)
  }

  @Test func `is not there in small images, whose subcluster is the cluster`() {
    let plain = ClusterGeometry(clusterBits: 16, refcountOrder: 4)
    #expect(plain.l2EntryCount == 8192)
    #expect(plain.l2CoverageByteCount == 512 << 20)
    #expect(plain.subclusterByteCount == 65_536)
    #expect(plain.subclusterIndex(of: GuestOffset(byteOffset: 65_535)) == 0)
  }

  @Test func `without a host cluster says which subclusters read as zeroes`() {
    #expect(runs(entry(.unallocated)) == ["unallocated 32"])
    #expect(runs(entry(.unallocated, zero: .max)) == ["zeroPlain 32"])
    #expect(
      runs(entry(.unallocated, zero: 0b110)) == ["unallocated 1", "zeroPlain 2", "unallocated 29"])
  }

  @Test func `with a host cluster says which subclusters have their bytes there`() {
    #expect(runs(entry(host)) == ["unallocated 32"])
    #expect(runs(entry(host, allocated: .max)) == ["normal 32"])
    #expect(runs(entry(host, zero: .max)) == ["zeroAllocated 32"])
    #expect(
      runs(entry(host, allocated: 0x8000_0001, zero: 0x6)) == [
        "normal 1", "zeroAllocated 2", "unallocated 28", "normal 1",
      ])
  }

  @Test func `of a compressed cluster says so of all subclusters`() {
    let packed = L2Entry(rawValue: L2Entry.compressedFlag | 0x50000)
    #expect(runs(entry(packed)) == ["compressed 32"])
  }

  @Test func `is invalid when it contradicts itself`() {
    let packed = L2Entry(rawValue: L2Entry.compressedFlag | 0x50000)
    let faults = [
      entry(host, allocated: 1, zero: 1),
      entry(host, allocated: 1 << 31, zero: .max),
      entry(.unallocated, allocated: 1),
      entry(packed, allocated: 1),
      entry(packed, zero: 1 << 31),
      entry(.zeroPlain),
      entry(L2Entry(zeroAllocatedAt: HostOffset(byteOffset: 0x50000)), allocated: .max),
      entry(L2Entry(rawValue: 0x50200)),
      entry(L2Entry(rawValue: L2Entry.copiedFlag)),
    ]
    for fault in faults {
      #expect(fault.clusterKind(in: geometry, hasDataFile: false) == .invalid, "\(fault)")
      #expect(runs(fault) == ["invalid 32"])
    }
  }

  @Test func `of a data file has its cluster at 0 when COPIED says so, and packs nothing`() {
    let first = entry(L2Entry(rawValue: L2Entry.copiedFlag), allocated: 0b11, zero: 0b100)
    #expect(first.clusterKind(in: geometry, hasDataFile: true) == .normal)
    #expect(first.run(from: 0, .normal) == (.normal, 2))
    #expect(first.run(from: 2, .normal) == (.zeroAllocated, 1))
    let packed = entry(L2Entry(rawValue: L2Entry.compressedFlag | 0x50000))
    #expect(packed.clusterKind(in: geometry, hasDataFile: true) == .invalid)
    let nowhere = entry(.unallocated, allocated: 1)
    #expect(nowhere.clusterKind(in: geometry, hasDataFile: true) == .invalid)
  }

  @Test func `changes the bits that are named, and no others`() {
    let mask = SubclusterBitmap.mask(4..<6)
    #expect(mask == 0b11_0000)
    #expect(SubclusterBitmap.mask(0..<32) == .max)
    #expect(SubclusterBitmap.mask(31..<32) == 1 << 31)
    #expect(SubclusterBitmap.mask(7..<7) == 0)
    let zeroes = SubclusterBitmap.allZero.allocating(mask)
    #expect(zeroes == SubclusterBitmap(allocated: mask, zero: ~mask))
    #expect(zeroes.zeroing(mask) == .allZero)
    #expect(zeroes.forgetting(.max) == .none)
    #expect(zeroes.forgetting(mask) == SubclusterBitmap(allocated: 0, zero: ~mask))
  }
}

@Suite struct `An image with extended L2 entries` {
  @Test func `is read`() throws {
    var golden = HeaderBytes.version3.with(UInt64(1 << 4), at: 72).with(UInt32(4), at: 36)
    golden.fileByteCount += 16
    let header = try golden.decode()
    #expect(header.geometry.hasSubclusters)
    try header.requireSupported(forWriting: false)
    #expect(try header.encode() == golden.bytes)
  }

  @Test func `needs twice the L1 entries of another image`() throws {
    var golden = HeaderBytes.version3.with(UInt64(1 << 4), at: 72).with(UInt32(3), at: 36)
    golden.fileByteCount += 16
    let error = #expect(throws: ImageError.self) { try golden.decode() }
    #expect(error?.reason.contains("too few") == true)
  }

  @Test(arguments: [9, 13]) func `and clusters below 16 KiB is refused`(_ bits: UInt32) throws {
    let golden = HeaderBytes.version3.with(UInt64(1 << 4), at: 72).with(bits, at: 20)
    let error = #expect(throws: ImageError.self) { try golden.decode() }
    #expect(error?.kind == .unsupported)
    #expect(error?.reason.contains("extended L2") == true)
  }
}

@Suite struct `The checker of an image with extended L2 entries` {
  /// One L2 table, whose entry number 3 has a data cluster.
  private func image(_ bitmap: SubclusterBitmap) throws -> (image: MemoryImage, entry: Int) {
    var image = try MemoryImage(
      clusterBits: 14, refcountOrder: 4, diskByteCount: 64 << 20, hasSubclusters: true)
    let l2 = image.addCluster(count: 1)
    let data = image.addCluster(count: 1)
    image.bytes.put(UInt64(l2) | 1 << 63, at: Int(image.header.l1TableOffset.byteOffset))
    let entry = l2 + 3 * 16
    image.bytes.put(UInt64(data) | 1 << 63, at: entry)
    image.bytes.put(bitmap.rawValue, at: entry + 8)
    return (image, entry)
  }

  @Test(arguments: [(0, 0), (1, 0), (1, .max - 1), (0, .max)] as [(UInt32, UInt32)])
  func `counts a host cluster once, whatever of it is in use`(
    _ allocated: UInt32, _ zero: UInt32
  ) throws {
    let report = try image(SubclusterBitmap(allocated: allocated, zero: zero)).image.check()
    #expect(report.isClean)
    #expect(report.allocatedClusterCount == 1)
  }

  @Test func `takes no bitmap for a place`() throws {
    var (image, entry) = try image(.none)
    image.bytes.put(UInt64(0), at: entry)
    image.bytes.put(SubclusterBitmap.allZero.rawValue, at: entry + 8)
    let report = try image.check()
    #expect(report.leakCount == 1)
    #expect(report.corruptionCount == 0)
  }

  @Test func `reports a subcluster that is both allocated and zero`() throws {
    let report = try image(SubclusterBitmap(allocated: 4, zero: 4)).image.check()
    #expect(report.corruptionCount > 0)
  }

  @Test func `reports an allocated subcluster without a host cluster`() throws {
    var (image, entry) = try image(SubclusterBitmap(allocated: 4, zero: 0))
    image.bytes.put(UInt64(0), at: entry)
    #expect(try image.check().corruptionCount == 1)
  }

  @Test func `finds a wrong COPIED flag`() throws {
    var (image, entry) = try image(SubclusterBitmap(allocated: 4, zero: 0))
    image.bytes[entry] = 0
    #expect(try image.check().corruptionCount == 1)
  }
}

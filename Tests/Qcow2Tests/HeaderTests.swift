// SPDX-License-Identifier: Apache-2.0
//
// The qcow2 header: golden vectors, every bound on both sides, truncations, refusals by name.
// Spec: qcow2.rst, "Header", "Header extensions".

import BlockTypes
import Qcow2
import Testing

@Suite struct `A qcow2 header` {
  @Test func `of version 3 decodes to its fields`() throws {
    let header = try HeaderBytes.version3.decode()
    #expect(header.version == 3)
    #expect(header.diskByteCount == 1 << 30)
    #expect(header.geometry == ClusterGeometry(clusterBits: 16, refcountOrder: 4))
    #expect(header.l1EntryCount == 2)
    #expect(header.l1TableOffset.byteOffset == 0x30000)
    #expect(header.refcountTableOffset.byteOffset == 0x10000)
    #expect(header.refcountTableClusterCount == 1)
    #expect(header.headerByteCount == 112)
    #expect(header.backingFile == nil)
    #expect(header.featureNames == FeatureName.standard)
    #expect(!header.isDirty)
  }

  @Test func `of version 2 implies 16-bit counts and no features`() throws {
    let header = try HeaderBytes.version2.decode()
    #expect(header.version == 2)
    #expect(header.geometry.refcountOrder == 4)
    #expect(header.headerByteCount == 72)
    #expect(header.incompatibleFeatures.isEmpty)
  }

  @Test func `of an overlay names its base and the base's format`() throws {
    let header = try HeaderBytes.overlay.decode()
    #expect(header.backingFile == "t2.qcow2")
    #expect(header.backingFormat == "qcow2")
  }

  @Test(arguments: [HeaderBytes.version2, .version3, .overlay])
  func `encodes to the bytes that QEMU wrote`(_ golden: HeaderBytes) throws {
    #expect(try golden.decode().encode() == golden.bytes)
  }

  @Test func `made anew equals the one that QEMU makes`() throws {
    var header = Header(
      version: 3, geometry: ClusterGeometry(clusterBits: 16, refcountOrder: 4),
      diskByteCount: 1 << 30)
    header.l1TableOffset = HostOffset(byteOffset: 0x30000)
    header.refcountTableOffset = HostOffset(byteOffset: 0x10000)
    header.refcountTableClusterCount = 1
    #expect(try header.encode() == HeaderBytes.version3.bytes)
    header.backingFile = "t2.qcow2"
    header.backingFormat = "qcow2"
    #expect(try header.encode() == HeaderBytes.overlay.bytes)
  }

  @Test func `keeps unknown fields, extensions and feature bits`() throws {
    var golden = HeaderBytes.version3.with(UInt64(0xff00), at: 80).with(UInt64(0xf0), at: 88)
    golden.bytes.replaceSubrange(105..<112, with: [1, 2, 3, 4, 5, 6, 7])
    golden.bytes.put(UInt32(0x1234_5678), at: 504)
    golden.bytes.put(UInt32(3), at: 508)
    golden.bytes.replaceSubrange(512..<515, with: [9, 8, 7])
    #expect(try golden.decode().encode() == golden.bytes)
  }

  @Test(arguments: [HeaderBytes.version2, .version3, .overlay])
  func `that is cut anywhere is refused or reads as if zeroes followed, and never traps`(
    _ golden: HeaderBytes
  ) {
    for byteCount in 0...1024 {
      do {
        let header = try Header(
          decoding: Array(golden.bytes.prefix(byteCount)), fileByteCount: golden.fileByteCount)
        #expect(byteCount >= header.headerByteCount)
      } catch {
        #expect(error.kind == .truncated)
      }
    }
  }

  @Test func `survives random bytes anywhere`() throws {
    var random = SplitMix(state: 42)
    for _ in 0..<20_000 {
      var golden = HeaderBytes.overlay
      for _ in 0..<(1 + Int(random.next() % 8)) {
        golden.bytes[Int(random.next() % 600)] = UInt8(truncatingIfNeeded: random.next())
      }
      do {
        let header = try golden.decode()
        // What was accepted can be written again and reads as the same.
        let again = try Header(decoding: header.encode(), fileByteCount: golden.fileByteCount)
        #expect(again.diskByteCount == header.diskByteCount)
        #expect(again.extensions == header.extensions)
      } catch {}
    }
  }

  @Test func `without room for the feature names leaves them out`() throws {
    var header = Header(
      version: 3, geometry: ClusterGeometry(clusterBits: 9, refcountOrder: 4), diskByteCount: 512)
    #expect(try header.encode().count == 512)
    header.backingFile = "base"
    header.backingFormat = "raw"
    let bytes = try header.encode()
    #expect(bytes.count == 512)
    header.backingFile = String(repeating: "x", count: 376)
    #expect(try header.encode().count == 512)
    header.backingFile = String(repeating: "x", count: 377)
    #expect(throws: ImageError.self) { try header.encode() }
  }
}

@Suite struct `A qcow2 header is refused` {
  /// Field, value, what the message must mention.
  static let faults: [(Int, UInt64, Int, String)] = [
    (0, 0x5146_4900, 4, "magic"), (4, 1, 4, "version"), (4, 4, 4, "version"),
    (20, 8, 4, "cluster_bits"), (20, 22, 4, "cluster_bits"), (20, 0, 4, "cluster_bits"),
    (20, 0xffff_ffff, 4, "cluster_bits"), (24, 1 << 63, 8, "size"),
    (24, (1 << 30) + 1, 8, "L1 table"), (36, 1, 4, "too few"), (36, 0x7fff_ffff, 4, "L1 table"),
    (36, 0xffff_ffff, 4, "L1 table"), (40, 0x30001, 8, "L1 table"), (40, 0, 8, "L1 table"),
    (40, 0xffff_ffff_ffff_0000, 8, "largest file offset"), (40, 0x40000, 8, "has only"),
    (48, 0x10200, 8, "refcount table"), (48, 0, 8, "refcount table"),
    (48, 1 << 40, 8, "has only"), (56, 0, 4, "no refcount table"), (56, 129, 4, "refcount table"),
    (56, 0xffff_ffff, 4, "refcount table"), (60, 65_537, 4, "snapshots"),
    (60, 1, 4, "snapshot table"), (64, 1, 8, "snapshot table"), (96, 7, 4, "refcount_order"),
    (96, 0xffff_ffff, 4, "refcount_order"), (100, 96, 4, "header_length"),
    (100, 105, 4, "header_length"), (100, 0x1_0008, 4, "longer than a cluster"),
    (100, 0xffff_fff8, 4, "longer than a cluster"), (104, 1, 1, "compression type"),
    (72, 8, 8, "compression type"), (88, 2, 8, "raw external data"),
    (8, 71, 8, "name"), (8, 65_537, 8, "name"), (8, 1 << 62, 8, "name"),
    (112, 0x6803_f857_7fff_ffff, 8, "too large"),
  ]

  @Test(arguments: faults)
  func `with the field's name when a value is impossible`(
    _ fault: (offset: Int, value: UInt64, byteCount: Int, text: String)
  ) throws {
    var golden = HeaderBytes.version3
    switch fault.byteCount {
    case 1: golden.bytes[fault.offset] = UInt8(fault.value)
    case 4: golden = golden.with(UInt32(fault.value), at: fault.offset)
    default: golden = golden.with(fault.value, at: fault.offset)
    }
    let error = #expect(throws: ImageError.self) { try golden.decode() }
    #expect(error?.reason.contains(fault.text) == true, "\(error?.reason ?? "")")
  }

  @Test(arguments: [(20, 9), (20, 21)]) func `not at the ends of the cluster sizes`(
    _ field: (offset: Int, bits: Int)
  ) throws {
    var golden = HeaderBytes.version3.with(UInt32(field.bits), at: field.offset)
    golden.bytes = Array(golden.bytes.prefix(1 << field.bits))
    golden.bytes.put(UInt64(0), at: 24)
    golden.bytes.put(UInt64(4) << UInt64(field.bits), at: 40)
    golden.bytes.put(UInt64(1) << UInt64(field.bits), at: 48)
    golden.fileByteCount = UInt64(5) << UInt64(field.bits)
    #expect(try golden.decode().geometry.clusterBits == field.bits)
  }

  @Test func `when a backing name is longer than 1023 bytes`() throws {
    var golden = HeaderBytes.version3.with(UInt64(1024), at: 8).with(UInt32(1023), at: 16)
    golden.bytes.replaceSubrange(1024..<2047, with: [UInt8](repeating: 0x61, count: 1023))
    #expect(try golden.decode().backingFile?.count == 1023)
    #expect(throws: ImageError.self) { try golden.with(UInt32(1024), at: 16).decode() }
  }

  @Test func `when a backing name has a NUL or is not text`() throws {
    var golden = HeaderBytes.overlay
    golden.bytes[0x211] = 0
    #expect(throws: ImageError.self) { try golden.decode() }
    golden.bytes[0x211] = 0xff
    #expect(throws: ImageError.self) { try golden.decode() }
  }

  @Test func `when an extension comes twice`() throws {
    var golden = HeaderBytes.version3
    golden.bytes.put(UInt32(0x6803_f857), at: 504)
    let error = #expect(throws: ImageError.self) { try golden.decode() }
    #expect(error?.reason.contains("twice") == true)
  }
}

@Suite struct `The encryption of a qcow2 image` {
  @Test func `has its header where the extension says, and needs a key`() throws {
    let header = try HeaderBytes.encrypted.decode()
    #expect(
      try header.encryptionArea()
        == EncryptionExtension(offset: HostOffset(byteOffset: 0x4_0000), byteCount: 2_068_480))
    try header.requireSupported(forWriting: true, needsNoKey: true)
    #expect(throws: ImageError.self) { try header.requireSupported(forWriting: false) }
    #expect(try header.encode() == HeaderBytes.encrypted.bytes)
  }

  // qcow2.rst, "Full disk encryption header pointer".
  @Test(arguments: [
    HeaderBytes.encrypted.with(UInt32(0), at: 32), HeaderBytes.encrypted.with(UInt32(1), at: 32),
    HeaderBytes.version3.with(UInt32(2), at: 32), HeaderBytes.version3.with(UInt32(3), at: 32),
    HeaderBytes.encrypted.with(UInt32(15), at: 508),
    HeaderBytes.encrypted.with(UInt32(24), at: 508),
    HeaderBytes.encrypted.with(UInt64(0x4_0001), at: 512),
    HeaderBytes.encrypted.with(UInt64(0), at: 512),
    HeaderBytes.encrypted.with(UInt64.max << 16, at: 512),
    HeaderBytes.encrypted.with(UInt64(0), at: 520),
    HeaderBytes.encrypted.with(UInt64(16 << 20 + 1), at: 520),
    HeaderBytes.encrypted.with(UInt64.max, at: 520),
  ])
  func `is refused when method, extension and place contradict each other`(
    golden: HeaderBytes
  ) {
    #expect(throws: ImageError.self) { try golden.decode() }
  }

  @Test func `needs a disk of whole sectors`() throws {
    let header = try HeaderBytes.encrypted.with(UInt64(1 << 20 + 1), at: 24).decode()
    #expect(throws: ImageError.self) {
      try header.requireSupported(forWriting: false, needsNoKey: true)
    }
  }
}

@Suite struct `What a qcow2 image needs and this program lacks` {
  static let features: [(HeaderBytes, String)] = [
    (HeaderBytes.version3.with(UInt64(1 << 20), at: 72), "bit 20"),
    (HeaderBytes.version3.with(UInt64(1 << 3), at: 72).with(UInt8(2), at: 104), "type 2"),
    (HeaderBytes.version3.with(UInt32(1), at: 32), "AES"),
    (HeaderBytes.encrypted, "LUKS"),
  ]

  @Test(arguments: features) func `is refused by name, also for reading`(
    _ feature: (bytes: HeaderBytes, name: String)
  ) throws {
    let header = try feature.bytes.decode()
    let error = #expect(throws: ImageError.self) { try header.requireSupported(forWriting: false) }
    #expect(error?.kind == .unsupported)
    #expect(error?.reason.contains(feature.name) == true)
  }

  @Test func `has the name that the image's own table gives it`() throws {
    var golden = HeaderBytes.version3.with(UInt64(1 << 20), at: 72)
    golden.bytes[120 + 1] = 20
    let error = #expect(throws: ImageError.self) {
      try golden.decode().requireSupported(forWriting: false)
    }
    #expect(error?.reason.contains("dirty bit (bit 20)") == true)
  }

  @Test func `does not include the dirty bit, lazy refcounts and unknown compatible bits`() throws {
    let golden = HeaderBytes.version3.with(UInt64(1), at: 72).with(UInt64.max, at: 80)
    let header = try golden.decode()
    #expect(header.isDirty)
    #expect(header.usesLazyRefcounts)
    try header.requireSupported(forWriting: true)
  }

  static let readOnly: [(HeaderBytes, String)] = [
    (HeaderBytes.version3.with(UInt64(2), at: 72), "corrupt"),
    (HeaderBytes.version3.with(UInt64((1 << 30) - 1), at: 24), "512"),
  ]

  @Test(arguments: readOnly) func `for writing only leaves reading possible`(
    _ feature: (bytes: HeaderBytes, name: String)
  ) throws {
    let header = try feature.bytes.decode()
    try header.requireSupported(forWriting: false)
    let error = #expect(throws: ImageError.self) { try header.requireSupported(forWriting: true) }
    #expect(error?.reason.contains(feature.name) == true)
  }

  @Test func `does not include bitmaps that their autoclear bit has given up`() throws {
    let header = try HeaderBytes.version3.withBitmaps.with(UInt64(0), at: 88).decode()
    #expect(!header.hasPersistentBitmaps)
    try header.requireNoBitmaps()
  }

  @Test func `keeps who does not keep up bitmaps from writing`() throws {
    let header = try HeaderBytes.version3.withBitmaps.decode()
    try header.requireSupported(forWriting: true)
    let error = #expect(throws: ImageError.self) { try header.requireNoBitmaps() }
    #expect(error?.reason.contains("bitmaps") == true)
  }
}

extension HeaderBytes {
  /// With a bitmaps extension in place of the feature names.
  var withBitmaps: HeaderBytes {
    var copy = with(UInt64(1), at: 88)
    copy.bytes.replaceSubrange(112..<504, with: [UInt8](repeating: 0, count: 392))
    copy.bytes.put(UInt32(0x2385_2875), at: 112)
    copy.bytes.put(UInt32(24), at: 116)
    copy.bytes.put(UInt32(1), at: 120)
    copy.bytes.put(UInt64(32), at: 128)
    copy.bytes.put(UInt64(0x20000), at: 136)
    return copy
  }
}

/// A small random generator with a seed, so that a failure can be repeated.
struct SplitMix {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15  // the algorithm counts modulo 2^64
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
    return mixed ^ (mixed >> 31)
  }
}

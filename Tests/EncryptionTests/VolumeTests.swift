// SPDX-License-Identifier: Apache-2.0
//
// LUKS1 volumes in memory: made, opened, and damaged in every field.
// Source: LUKS1 On-Disk Format Specification.

import BlockTypes
import Encryption
import Testing

private let cheap = KeyCost(slotIterationCount: 1, digestIterationCount: 1)

/// A volume's header and slots as they lie in a file.
struct VolumeBytes {
  var bytes: [UInt8]

  init(
    _ specification: CipherSpecification = CipherSpecification(
      aesBits: 128, mode: .xts, vector: .plain64), hash: HashAlgorithm = .sha256,
    passphrases: [Int: String] = [0: "first"]
  ) throws {
    var volume = try LUKSVolume(specification, hash: hash, cost: cheap)
    bytes = [UInt8](repeating: 0, count: Int(LUKSVolume.areaByteCount(specification)))
    for (slot, passphrase) in passphrases {
      let (entry, sealed) = try volume.fill(
        slot: slot, passphrase: secret(passphrase), cost: cheap)
      volume.header.slots[slot] = entry
      let start = Int(entry.materialOffset)
      bytes.replaceSubrange(start..<(start + sealed.count), with: sealed)
    }
    bytes.replaceSubrange(0..<LUKSHeader.byteCount, with: volume.header.encode())
  }

  func header() throws(ImageError) -> LUKSHeader {
    try LUKSHeader(decoding: bytes, areaByteCount: UInt64(bytes.count))
  }

  func open(_ passphrase: String) throws -> LUKSVolume? {
    try LUKSVolume(
      opening: try header(), passphrase: secret(passphrase), fault: { $0 },
      read: { (offset, count) throws(ImageError) in
        Array(bytes[min(Int(offset), bytes.count)..<min(Int(offset) + count, bytes.count)])
      })
  }

  mutating func put(_ value: UInt32, at offset: Int) {
    for index in 0..<4 {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (24 - 8 * UInt32(index)))
    }
  }
}

/// What a call threw.
private func refusal(_ body: () throws -> Void) -> String {
  do {
    try body()
    return "nothing was refused"
  } catch {
    return "\(error)"
  }
}

@Suite struct `LUKS1 volumes` {
  @Test(
    arguments: [
      CipherSpecification(aesBits: 128, mode: .cbc, vector: .essiv(.sha256)),
      CipherSpecification(aesBits: 256, mode: .xts, vector: .plain64),
      CipherSpecification(aesBits: 256, mode: .cbc, vector: .plain),
    ], HashAlgorithm.allCases)
  func `open with each of their passphrases, in whatever slot, and with no other`(
    specification: CipherSpecification, hash: HashAlgorithm
  ) throws {
    let volume = try VolumeBytes(specification, hash: hash, passphrases: [0: "a", 7: "b"])
    let first = try #require(try volume.open("a"))
    let second = try #require(try volume.open("b"))
    #expect(first.openedSlot == 0 && second.openedSlot == 7)
    #expect(first.specification == specification && first.hash == hash)
    let sector = [UInt8](repeating: 3, count: 512)
    #expect(
      try second.cipher().opened(try first.cipher().sealed(sector, sector: 9), sector: 9)
        == sector)
    #expect(try volume.open("c") == nil)
    #expect(try volume.open("a\n") == nil)
  }

  @Test func `the header is what was encoded`() throws {
    let header = try VolumeBytes().header()
    #expect(try LUKSHeader(decoding: header.encode(), areaByteCount: 1 << 21) == header)
    #expect(header.cipherName == "aes" && header.cipherMode == "xts-plain64")
    #expect(
      header.uuid.count == 36
        && header.slots.map(\.isActive) == [true] + .init(repeating: false, count: 7))
  }

  @Test func `iterations are measured for a time, and bounded`() throws {
    var now: UInt64 = 0
    // Each call of the clock is 50 ms later, so 1,024 iterations take that long.
    let cost = try KeyCost(milliseconds: 500, hash: .sha256, keyByteCount: 32) {
      now += 50_000_000
      return now
    }
    #expect(cost == KeyCost(slotIterationCount: 10_240, digestIterationCount: 1_280))
    #expect(
      KeyCost(slotIterationCount: .max, digestIterationCount: 0).slotIterationCount
        == LUKSHeader.iterationCountMax)
    #expect(
      KeyCost(slotIterationCount: .max, digestIterationCount: 0).digestIterationCount == 1_000)
  }
}

@Suite struct `A LUKS1 header that is wrong` {
  @Test func `ends too early at every length below 592`() throws {
    let volume = try VolumeBytes()
    for count in 0..<LUKSHeader.byteCount {
      #expect(throws: ImageError.self) {
        try LUKSHeader(decoding: Array(volume.bytes[..<count]), areaByteCount: 1 << 21)
      }
    }
  }

  @Test(arguments: [
    (0, 0 as UInt32, "magic"), (4, 0xbabe_0002, "LUKS version 2"),
    (108, 0, "key"), (108, 65, "key"), (108, .max, "key"), (164, 0, "no iterations"),
    (164, .max, "asks for"), (208, 7, "neither active nor vacant"),
    (212, 0, "no iterations"), (212, 1 << 26 + 1, "asks for"),
    (248, 0, "lie on the header"), (248, .max, "pass the end"), (296, 8, "overlap"),
    (252, 3_999, "stripes"), (252, .max, "stripes"), (8, 0, "cipher"),
  ])
  func `is refused by the field that is wrong`(
    offset: Int, value: UInt32, words: String
  ) throws {
    var volume = try VolumeBytes()
    volume.put(value, at: offset)
    let text = refusal { _ = try volume.header().specification() }
    #expect(text.contains(words), "\(offset): \(text)")
  }

  @Test(arguments: [
    (8, "serpent", "the cipher 'serpent'"), (40, "ecb", "the cipher mode 'ecb'"),
    (40, "xts-benbi", "the vectors 'benbi'"), (40, "cbc-essiv:sha512", "'essiv:sha512'"),
    (72, "ripemd160", "the hash 'ripemd160'"),
  ])
  func `names what is not supported`(offset: Int, name: String, words: String) throws {
    var volume = try VolumeBytes()
    for index in 0..<32 { volume.bytes[offset + index] = 0 }
    volume.bytes.replaceSubrange(offset..<(offset + name.utf8.count), with: Array(name.utf8))
    #expect(refusal { _ = try volume.open("first") }.contains(words))
    #expect(refusal { _ = try volume.header() } == "nothing was refused")
  }

  @Test func `makes nobody compute more than the limit in all slots together`() throws {
    var volume = try VolumeBytes(passphrases: [0: "a", 1: "b", 2: "c"])
    for slot in 0..<3 { volume.put(1 << 26 - 1, at: 212 + 48 * slot) }
    #expect(refusal { _ = try volume.header() }.contains("iterations, more than"))
  }

  @Test func `with any bit of any byte changed traps nowhere`() throws {
    let volume = try VolumeBytes()
    for index in 0..<LUKSHeader.byteCount {
      for bit in 0..<8 {
        var changed = volume
        changed.bytes[index] ^= 1 << UInt8(bit)
        _ = refusal { _ = try changed.header() }
      }
    }
  }

  @Test func `a changed digest, salt or stripe is a wrong key`() throws {
    for offset in [112, 132, 216, 4096, 4096 + 127_999] {
      var volume = try VolumeBytes()
      volume.bytes[offset] ^= 0x80
      #expect(try volume.open("first") == nil)
    }
  }

  @Test func `stripes that the file does not hold are an error`() throws {
    let volume = try VolumeBytes()
    let header = try volume.header()
    let text = refusal {
      _ = try LUKSVolume(
        opening: header, passphrase: secret("first"), fault: { $0 },
        read: { (_, count) throws(ImageError) in [UInt8](repeating: 0, count: count - 1) })
    }
    #expect(text.contains("ends inside the stripes of key slot 0"))
  }
}

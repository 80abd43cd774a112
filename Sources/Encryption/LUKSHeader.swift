// SPDX-License-Identifier: Apache-2.0
//
// The header of a LUKS1 volume as a value: the cipher, the digest of the volume's key, and eight
// slots that may hold it. Source: LUKS1 On-Disk Format Specification, "The partition header".
// This file performs no I/O.

import BlockTypes

/// One of the places for the volume's key.
public struct KeySlot: Hashable, Sendable {
  public var isActive: Bool
  /// Iterations of PBKDF2 that a passphrase takes.
  public var iterationCount: UInt32
  public var salt: [UInt8]
  /// Where the stripes are, in sectors from the start of the header.
  public var materialSector: UInt32
  public var stripeCount: UInt32

  public init(
    isActive: Bool, iterationCount: UInt32, salt: [UInt8], materialSector: UInt32,
    stripeCount: UInt32
  ) {
    self.isActive = isActive
    self.iterationCount = iterationCount
    self.salt = salt
    self.materialSector = materialSector
    self.stripeCount = stripeCount
  }

  public var materialOffset: UInt64 { UInt64(materialSector) << CipherSector.bits }
}

/// Everything that the first 592 bytes say.
public struct LUKSHeader: Hashable, Sendable {
  /// "aes".
  public let cipherName: String
  /// "xts-plain64".
  public let cipherMode: String
  public let hashName: String
  /// Where the volume's own sectors begin, in sectors; qcow2 has them elsewhere.
  public let payloadSector: UInt32
  public let keyByteCount: Int
  /// PBKDF2 of the volume's key, by which a right one is known.
  public var digest: [UInt8]
  public var digestSalt: [UInt8]
  public var digestIterationCount: UInt32
  public let uuid: String
  public var slots: [KeySlot]

  public static let byteCount = 592
  public static let magic: [UInt8] = [0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe]
  public static let slotCount = 8
  public static let digestByteCount = 20
  public static let saltByteCount = 32
  public static let slotsOffset = 208
  public static let slotByteCount = 48
  static let activeMark: UInt32 = 0x00ac_71f3
  static let vacantMark: UInt32 = 0x0000_dead
  static let keyByteCountMax = 64
  /// Stripes of every key slot.
  public static let stripeCount = 4_000

  /// Iterations that a header may ask for, in one place and in all active ones together: they are
  /// what a stranger's image can make its reader compute. Some seconds each.
  public static let iterationCountMax: UInt32 = 1 << 26
  public static let iterationSumMax: UInt64 = 1 << 27

  init(
    specification: CipherSpecification, hash: HashAlgorithm, uuid: String, payloadSector: UInt32,
    slots: [KeySlot]
  ) {
    cipherName = "aes"
    cipherMode = specification.modeText
    hashName = hash.rawValue
    keyByteCount = specification.keyByteCount
    self.uuid = uuid
    self.payloadSector = payloadSector
    self.slots = slots
    digest = [UInt8](repeating: 0, count: LUKSHeader.digestByteCount)
    digestSalt = [UInt8](repeating: 0, count: LUKSHeader.saltByteCount)
    digestIterationCount = 1
  }

  // MARK: Decoding

  /// Decodes the start of a header area. Ciphers and hashes that are not known are no error here:
  /// `specification` and `hash` say so.
  ///
  /// - Parameters:
  ///   - bytes: at least `byteCount` bytes.
  ///   - areaByteCount: bytes that header and key slots have; none may pass their end.
  public init(decoding bytes: [UInt8], areaByteCount: UInt64) throws(ImageError) {
    guard bytes.count >= LUKSHeader.byteCount, areaByteCount >= UInt64(LUKSHeader.byteCount) else {
      throw ImageError(.truncated, "the encryption header ends before byte 592")
    }
    guard bytes.starts(with: LUKSHeader.magic) else {
      throw ImageError(.corrupt, "the encryption header is not LUKS: the magic is missing")
    }
    let version = bytes.loadBigEndian(UInt16.self, at: 6)
    guard version == 1 else {
      throw ImageError(.unsupported, "the encryption header has LUKS version \(version), not 1")
    }
    cipherName = try LUKSHeader.text(bytes, 8, 32, "cipher name")
    cipherMode = try LUKSHeader.text(bytes, 40, 32, "cipher mode")
    hashName = try LUKSHeader.text(bytes, 72, 32, "hash")
    payloadSector = bytes.loadBigEndian(UInt32.self, at: 104)
    let keyByteCount = bytes.loadBigEndian(UInt32.self, at: 108)
    guard (1...UInt32(LUKSHeader.keyByteCountMax)).contains(keyByteCount) else {
      throw ImageError(
        .corrupt, "the key of the encryption header has \(keyByteCount) bytes, not 1...64")
    }
    self.keyByteCount = Int(keyByteCount)
    digest = Array(bytes[112..<132])
    digestSalt = Array(bytes[132..<164])
    digestIterationCount = bytes.loadBigEndian(UInt32.self, at: 164)
    uuid = try LUKSHeader.text(bytes, 168, 40, "UUID")
    slots = []
    for index in 0..<LUKSHeader.slotCount {
      slots.append(try LUKSHeader.slot(bytes, index))
    }
    try requireConsistentSlots(areaByteCount: areaByteCount)
    try requireBoundedWork()
  }

  private static func text(
    _ bytes: [UInt8], _ start: Int, _ count: Int, _ what: String
  ) throws(ImageError) -> String {
    let field = bytes[start..<(start + count)]
    guard let end = field.firstIndex(of: 0) else {
      throw ImageError(.corrupt, "the \(what) of the encryption header has no end")
    }
    guard field[..<end].allSatisfy({ (0x21...0x7e).contains($0) }) else {
      throw ImageError(.corrupt, "the \(what) of the encryption header is no printable text")
    }
    return String(decoding: field[..<end], as: UTF8.self)
  }

  private static func slot(_ bytes: [UInt8], _ index: Int) throws(ImageError) -> KeySlot {
    let start = slotsOffset + index * slotByteCount
    let mark = bytes.loadBigEndian(UInt32.self, at: start)
    guard mark == activeMark || mark == vacantMark else {
      throw ImageError(
        .corrupt, "key slot \(index) is neither active nor vacant (0x\(String(mark, radix: 16)))")
    }
    return KeySlot(
      isActive: mark == activeMark,
      iterationCount: bytes.loadBigEndian(UInt32.self, at: start + 4),
      salt: Array(bytes[(start + 8)..<(start + 40)]),
      materialSector: bytes.loadBigEndian(UInt32.self, at: start + 40),
      stripeCount: bytes.loadBigEndian(UInt32.self, at: start + 44))
  }

  /// Bytes of a slot's stripes.
  public var materialByteCount: Int { keyByteCount * LUKSHeader.stripeCount }

  /// Where a slot's stripes are, in whole sectors.
  func materialRange(_ slot: KeySlot) -> ByteRange {
    let start = slot.materialOffset
    return ByteRange(start: start, end: start + UInt64(materialByteCount))
      .roundedOut(to: UInt64(CipherSector.byteCount))
  }

  private func requireConsistentSlots(areaByteCount: UInt64) throws(ImageError) {
    for (index, slot) in slots.enumerated() {
      guard slot.stripeCount == UInt32(LUKSHeader.stripeCount) else {
        throw ImageError(
          .corrupt, "key slot \(index) has \(slot.stripeCount) stripes instead of 4000")
      }
      let range = materialRange(slot)
      guard range.start >= UInt64(LUKSHeader.byteCount) else {
        throw ImageError(.corrupt, "the stripes of key slot \(index) lie on the header")
      }
      guard range.end <= areaByteCount.alignedUp(to: UInt64(CipherSector.byteCount)) else {
        throw ImageError(.corrupt, "the stripes of key slot \(index) pass the end of their area")
      }
      for other in 0..<index where materialRange(slots[other]).overlaps(range) {
        throw ImageError(.corrupt, "the stripes of the key slots \(other) and \(index) overlap")
      }
    }
  }

  private func requireBoundedWork() throws(ImageError) {
    var counts = [("the digest", digestIterationCount)]
    for (index, slot) in slots.enumerated() where slot.isActive {
      counts.append(("key slot \(index)", slot.iterationCount))
    }
    var sum: UInt64 = 0
    for (name, count) in counts {
      guard count > 0 else {
        throw ImageError(.corrupt, "\(name) of the encryption header has no iterations")
      }
      guard count <= LUKSHeader.iterationCountMax else {
        throw ImageError(
          .refused,
          "\(name) of the encryption header asks for \(count) iterations, more than"
            + " \(LUKSHeader.iterationCountMax)")
      }
      sum += UInt64(count)
    }
    guard sum <= LUKSHeader.iterationSumMax else {
      throw ImageError(
        .refused,
        "the encryption header asks for \(sum) iterations, more than \(LUKSHeader.iterationSumMax)")
    }
  }

  // MARK: Encoding

  /// The 592 bytes.
  public func encode() -> [UInt8] {
    var bytes = LUKSHeader.magic + [0, 1]
    for name in [cipherName, cipherMode, hashName] { bytes += LUKSHeader.padded(name, 32) }
    bytes += LUKSHeader.bigEndian(payloadSector) + LUKSHeader.bigEndian(UInt32(keyByteCount))
    bytes += digest + digestSalt + LUKSHeader.bigEndian(digestIterationCount)
    bytes += LUKSHeader.padded(uuid, 40)
    for slot in slots { bytes += LUKSHeader.encode(slot) }
    precondition(bytes.count == LUKSHeader.byteCount, "an encryption header has another size")
    return bytes
  }

  /// The 48 bytes of a slot.
  public static func encode(_ slot: KeySlot) -> [UInt8] {
    bigEndian(slot.isActive ? activeMark : vacantMark) + bigEndian(slot.iterationCount)
      + slot.salt + bigEndian(slot.materialSector) + bigEndian(slot.stripeCount)
  }

  private static func padded(_ text: String, _ count: Int) -> [UInt8] {
    let bytes = Array(text.utf8)
    precondition(bytes.count < count, "a name does not fit into the encryption header")
    return bytes + [UInt8](repeating: 0, count: count - bytes.count)
  }

  private static func bigEndian(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * UInt32($0))) }
  }
}

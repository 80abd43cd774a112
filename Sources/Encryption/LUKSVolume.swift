// SPDX-License-Identifier: Apache-2.0
//
// Opening a LUKS1 volume with a passphrase, making a new one, and filling its key slots. Reads and
// writes through its callers, and sees no clock.
// Source: LUKS1 On-Disk Format Specification, "Operations on the master key".

import BlockTypes

/// How much work a passphrase shall be.
public struct KeyCost: Hashable, Sendable {
  /// Iterations of PBKDF2 for a slot.
  public var slotIterationCount: UInt32
  /// Iterations for the digest, which hides a random key.
  public var digestIterationCount: UInt32

  /// Fewer are not taken, however slow the machine is (RFC 8018, section 4.2).
  public static let iterationCountMin: UInt32 = 1_000

  public init(slotIterationCount: UInt32, digestIterationCount: UInt32) {
    func bounded(_ count: UInt32) -> UInt32 {
      min(max(count, KeyCost.iterationCountMin), LUKSHeader.iterationCountMax)
    }
    self.slotIterationCount = bounded(slotIterationCount)
    self.digestIterationCount = bounded(digestIterationCount)
  }

  /// The cost that makes a slot take `milliseconds` on this machine.
  ///
  /// - Parameter nanoseconds: tells the time that this thread has computed.
  public init(
    milliseconds: UInt64, hash: HashAlgorithm, keyByteCount: Int,
    nanoseconds: () -> UInt64
  ) throws(ImageError) {
    let password = SecretBytes(copying: Array("password".utf8))
    let salt = [UInt8](repeating: 0x5a, count: LUKSHeader.saltByteCount)
    var count: UInt32 = 1 << 10
    while true {
      let start = nanoseconds()
      _ = try hash.derive(
        password, salt: salt, iterationCount: count, byteCount: keyByteCount)
      let taken = nanoseconds() &- start
      // A measurement this long is right to some per cent, and so is one with so many iterations.
      guard taken >= 50_000_000 || count >= 1 << 24 else {
        count *= 2
        continue
      }
      let wanted = Double(count) * Double(milliseconds) * 1e6 / Double(max(taken, 1))
      let slot = UInt32(min(max(wanted, 0), Double(LUKSHeader.iterationCountMax)))
      self.init(slotIterationCount: slot, digestIterationCount: slot / 8)
      return
    }
  }
}

/// A volume whose key is known.
public struct LUKSVolume: Sendable {
  public var header: LUKSHeader
  public let specification: CipherSpecification
  public let hash: HashAlgorithm
  private let key: SecretBytes
  /// The slot that the passphrase opened; nil of a new volume.
  public let openedSlot: Int?

  /// The start of each slot's stripes is a multiple of this, as QEMU and cryptsetup have it.
  private static let slotAlignment: UInt64 = 4_096

  // MARK: Opening

  /// Opens a volume with the first slot that `passphrase` opens; nil when it opens none.
  ///
  /// Takes up to `LUKSHeader.iterationSumMax` iterations.
  ///
  /// - Parameter read: reads at an offset from the header's start; it throws when it cannot.
  public init?<Failure: Error>(
    opening header: LUKSHeader, passphrase: SecretBytes,
    fault: (ImageError) -> Failure,
    read: (_ offset: UInt64, _ byteCount: Int) throws(Failure) -> [UInt8]
  ) throws(Failure) {
    let specification: CipherSpecification
    let hash: HashAlgorithm
    do throws(ImageError) {
      specification = try header.specification()
      hash = try header.hash()
    } catch { throw fault(error) }
    for (index, slot) in header.slots.enumerated() where slot.isActive {
      let range = header.materialRange(slot)
      let sealed = try read(range.start, Int(range.byteCount))
      guard sealed.count == Int(range.byteCount) else {
        throw fault(
          ImageError(.truncated, "the file ends inside the stripes of key slot \(index)"))
      }
      do throws(ImageError) {
        let candidate = try LUKSVolume.unlock(
          slot, sealed, header, specification, hash, passphrase)
        guard try LUKSVolume.isRight(candidate, header, hash) else { continue }
        self.header = header
        self.specification = specification
        self.hash = hash
        key = candidate
        openedSlot = index
        return
      } catch { throw fault(error) }
    }
    return nil
  }

  /// The key that a slot holds if the passphrase is right, and any other if not.
  private static func unlock(
    _ slot: KeySlot, _ sealed: [UInt8], _ header: LUKSHeader,
    _ specification: CipherSpecification, _ hash: HashAlgorithm, _ passphrase: SecretBytes
  ) throws(ImageError) -> SecretBytes {
    let slotKey = try hash.derive(
      passphrase, salt: slot.salt, iterationCount: slot.iterationCount,
      byteCount: header.keyByteCount)
    let stripes = SecretBytes(copying: sealed)
    let cipher = try VolumeCipher(specification, key: slotKey)
    guard stripes.withMutableSpan({ cipher.decrypt(&$0, firstSector: 0) }) else {
      throw ImageError(.unsupported, "a key slot cannot be decrypted")
    }
    return try AntiForensic.merge(
      SecretBytes(prefix: header.materialByteCount, of: stripes),
      stripeCount: LUKSHeader.stripeCount, hash: hash)
  }

  private static func isRight(
    _ key: SecretBytes, _ header: LUKSHeader, _ hash: HashAlgorithm
  ) throws(ImageError) -> Bool {
    let digest = try hash.derive(
      key, salt: header.digestSalt, iterationCount: header.digestIterationCount,
      byteCount: LUKSHeader.digestByteCount)
    return digest.equals(SecretBytes(copying: header.digest))
  }

  /// The cipher of the volume's sectors; for one thread.
  public func cipher() throws(ImageError) -> VolumeCipher {
    try VolumeCipher(specification, key: key)
  }

  // MARK: Making

  /// A new volume with a random key and no slot in use.
  public init(
    _ specification: CipherSpecification, hash: HashAlgorithm, cost: KeyCost
  ) throws(ImageError) {
    self.specification = specification
    self.hash = hash
    openedSlot = nil
    let area = LUKSVolume.areas(specification)
    let sectorBits = CipherSector.bits
    let slots = try area.slotOffsets.map { offset throws(ImageError) in
      KeySlot(
        isActive: false, iterationCount: 0,
        salt: [UInt8](repeating: 0, count: LUKSHeader.saltByteCount),
        materialSector: UInt32(offset >> sectorBits),
        stripeCount: UInt32(LUKSHeader.stripeCount))
    }
    var header = LUKSHeader(
      specification: specification, hash: hash, uuid: try LUKSVolume.makeUUID(),
      payloadSector: UInt32(area.byteCount >> sectorBits), slots: slots)
    key = try Cryptography.randomKey(byteCount: specification.keyByteCount)
    header.digestSalt = try Cryptography.randomBytes(count: LUKSHeader.saltByteCount)
    header.digestIterationCount = cost.digestIterationCount
    let digest = try hash.derive(
      key, salt: header.digestSalt, iterationCount: cost.digestIterationCount,
      byteCount: LUKSHeader.digestByteCount)
    header.digest = (0..<LUKSHeader.digestByteCount).map { digest[$0] }
    self.header = header
  }

  /// Bytes of the header and all slots of such a volume.
  public static func areaByteCount(_ specification: CipherSpecification) -> UInt64 {
    areas(specification).byteCount
  }

  private static func areas(
    _ specification: CipherSpecification
  ) -> (slotOffsets: [UInt64], byteCount: UInt64) {
    let slotByteCount = UInt64(specification.keyByteCount * LUKSHeader.stripeCount)
      .alignedUp(to: slotAlignment)
    let offsets = (0..<UInt64(LUKSHeader.slotCount)).map { slotAlignment + $0 * slotByteCount }
    return (offsets, slotAlignment + UInt64(LUKSHeader.slotCount) * slotByteCount)
  }

  /// A random UUID (RFC 9562, version 4).
  private static func makeUUID() throws(ImageError) -> String {
    var bytes = try Cryptography.randomBytes(count: 16)
    bytes[6] = bytes[6] & 0x0f | 0x40
    bytes[8] = bytes[8] & 0x3f | 0x80
    var text = ""
    for (index, byte) in bytes.enumerated() {
      if [4, 6, 8, 10].contains(index) { text += "-" }
      text += byte < 16 ? "0" : ""
      text += String(byte, radix: 16)
    }
    return text
  }

  // MARK: Slots

  /// Prepares a vacant slot for `passphrase`: what its stripes have to be, and its entry, active.
  ///
  /// The stripes are written and durable before the entry says that they are there.
  public func fill(
    slot index: Int, passphrase: SecretBytes, cost: KeyCost
  ) throws(ImageError) -> (entry: KeySlot, sealed: [UInt8]) {
    precondition(!header.slots[index].isActive, "a key slot in use was to be filled")
    var entry = header.slots[index]
    entry.isActive = true
    entry.iterationCount = cost.slotIterationCount
    entry.salt = try Cryptography.randomBytes(count: LUKSHeader.saltByteCount)
    let slotKey = try hash.derive(
      passphrase, salt: entry.salt, iterationCount: entry.iterationCount,
      byteCount: header.keyByteCount)
    let stripes = try AntiForensic.split(
      key, stripeCount: LUKSHeader.stripeCount, hash: hash,
      filler: try Cryptography.randomKey(byteCount: header.materialByteCount))
    let cipher = try VolumeCipher(specification, key: slotKey)
    let byteCount = Int(header.materialRange(entry).byteCount)
    let plain = SecretBytes(prefix: stripes.byteCount, of: stripes, paddedTo: byteCount)
    let sealed = SecretBytes(byteCount: byteCount)
    let isSealed = sealed.withMutableSpan { target in
      plain.withMutableSpan { source in
        cipher.encrypt(source.bytes, into: &target, firstSector: 0)
      }
    }
    guard isSealed else { throw ImageError(.unsupported, "a key slot cannot be encrypted") }
    return (entry, (0..<byteCount).map { sealed[$0] })
  }
}

extension SecretBytes {
  /// The first `count` bytes of another secret, and zeroes behind them.
  convenience init(prefix count: Int, of other: SecretBytes, paddedTo byteCount: Int) {
    self.init(byteCount: byteCount)
    for index in 0..<count { self[index] = other[index] }
  }
}

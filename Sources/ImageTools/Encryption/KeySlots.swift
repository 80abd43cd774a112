// SPDX-License-Identifier: Apache-2.0
//
// The key slots of an encrypted image that nobody uses: listed, filled, emptied. A slot says that
// it is active after all that it needs is durable, and vacant before anything of it is destroyed,
// so that a power cut leaves the old keys or the new ones.
// Source: LUKS1 On-Disk Format Specification, "Operations on the master key".

import BlockTypes
import Encryption
import LinuxIO
import Qcow2

/// Changes who can open an image.
public struct KeySlots {
  private let storage: LayerFile
  private let header: Header
  private var luks: LUKSHeader
  private let area: EncryptionExtension

  /// Opens an encrypted image.
  ///
  /// - Parameter access: for a change the image is locked as for writing.
  public init(path: String, access: ImageFile.Access, takesLocks: Bool) throws(ImageFault) {
    var options = OpenChain.Options(
      detection: .topQcow2, takesLocks: takesLocks, followsBackingFiles: false,
      requiresSupport: false, rebuildsDirty: false)
    options.needsKeys = false
    options.changesDisk = false
    let layer = try OpenChain.open(path: path, format: nil, access: access, options: options)[0]
    guard let header = layer.header, header.encryptionMethod == Header.encryptionLUKS else {
      throw ImageFault(path, "the image is not encrypted with LUKS", kind: .refused)
    }
    storage = layer.storage
    self.header = header
    (luks, area) = try storage.encryptionStart(of: header)
  }

  public var slots: [KeySlot] { luks.slots }

  // MARK: Adding

  /// Makes `newKey` open the image, too, and returns the slot that it has.
  ///
  /// - Parameters:
  ///   - key: opens the image now.
  ///   - slot: which one; nil: the first that is vacant.
  ///   - milliseconds: how long a try of the key is to be computed for.
  public mutating func add(
    _ newKey: SecretBytes, by key: SecretBytes, slot: Int?, milliseconds: UInt64
  ) throws(ImageFault) -> Int {
    try NewVolume.requireTakenByOthers(newKey, path: storage.path)
    guard let index = slot ?? luks.slots.firstIndex(where: { !$0.isActive }) else {
      throw ImageFault(
        storage.path, "all 8 key slots are in use", wayOut: "remove one first (strata key remove)",
        kind: .refused)
    }
    try requireSlot(index, isActive: false)
    let volume = try KeyRing(entries: [(nil, key)]).open(storage, header)
    let filled: (entry: KeySlot, sealed: [UInt8])
    do throws(ImageError) {
      let cost = try KeyCost(
        milliseconds: milliseconds, hash: volume.hash, keyByteCount: luks.keyByteCount,
        nanoseconds: { Environment.computedNanoseconds })
      filled = try volume.fill(slot: index, passphrase: newKey, cost: cost)
      var changed = luks
      changed.slots[index] = filled.entry
      // Nobody would open an image that asks for too much.
      _ = try LUKSHeader(decoding: changed.encode(), areaByteCount: area.byteCount)
    } catch { throw ImageFault(storage.path, error) }
    try storage.write(filled.sealed, at: area.offset.byteOffset + filled.entry.materialOffset)
    try storage.synchronize()
    var entry = filled.entry
    entry.isActive = false
    try write(entry, at: index)
    entry.isActive = true
    try writeMark(of: entry, at: index)
    luks.slots[index] = entry
    return index
  }

  // MARK: Removing

  /// Makes the key of a slot worthless, and destroys what it opened.
  ///
  /// - Parameter key: opens another slot, which proves that the image is not lost; nil: the caller
  ///   takes that upon himself.
  public mutating func remove(slot index: Int, provenBy key: SecretBytes?) throws(ImageFault) {
    try requireSlot(index, isActive: true)
    if let key {
      var others = luks
      others.slots[index].isActive = false
      guard others.slots.contains(where: \.isActive) else {
        throw ImageFault(
          storage.path, "slot \(index) is the last one: without it nobody reads the image again",
          wayOut: "add another key first, or say --force", kind: .refused)
      }
      guard try opens(key, others) else {
        throw ImageFault(
          storage.path, "the key opens none of the slots that would be left",
          wayOut: "give one that does, or say --force", kind: .refused)
      }
    }
    var entry = luks.slots[index]
    entry.isActive = false
    try writeMark(of: entry, at: index)
    let byteCount = (luks.materialByteCount + 511) / 512 * 512
    do throws(ImageError) {
      let noise = try Cryptography.randomBytes(count: byteCount)
      do throws(ImageFault) {
        try storage.write(noise, at: area.offset.byteOffset + entry.materialOffset)
      } catch { throw ImageError(.refused, error.cause) }
    } catch { throw ImageFault(storage.path, error) }
    entry.iterationCount = 0
    entry.salt = [UInt8](repeating: 0, count: LUKSHeader.saltByteCount)
    try write(entry, at: index)
    luks.slots[index] = entry
  }

  private func opens(_ key: SecretBytes, _ header: LUKSHeader) throws(ImageFault) -> Bool {
    try LUKSVolume(
      opening: header, passphrase: key, fault: { ImageFault(storage.path, $0) },
      read: { (offset, byteCount) throws(ImageFault) in
        try storage.read(at: area.offset.byteOffset + offset, byteCount: byteCount)
      }) != nil
  }

  // MARK: Entries

  private func requireSlot(_ index: Int, isActive: Bool) throws(ImageFault) {
    guard luks.slots.indices.contains(index) else {
      throw ImageFault(
        storage.path, "there is no key slot \(index)", wayOut: "name one of 0 to 7",
        kind: .refused)
    }
    guard luks.slots[index].isActive == isActive else {
      throw ImageFault(
        storage.path, "key slot \(index) is \(isActive ? "vacant" : "in use")",
        wayOut: "look at them (strata key list)", kind: .refused)
    }
  }

  private func offset(of index: Int) -> UInt64 {
    area.offset.byteOffset + UInt64(LUKSHeader.slotsOffset + index * LUKSHeader.slotByteCount)
  }

  /// Writes a vacant entry, durably. It may be torn by a power cut: nobody believes it yet.
  private func write(_ entry: KeySlot, at index: Int) throws(ImageFault) {
    try storage.write(LUKSHeader.encode(entry), at: offset(of: index))
    try storage.synchronize()
  }

  /// Writes whether a slot is active, durably: four bytes within one sector.
  private func writeMark(of entry: KeySlot, at index: Int) throws(ImageFault) {
    try storage.write(Array(LUKSHeader.encode(entry)[..<4]), at: offset(of: index))
    try storage.synchronize()
  }
}

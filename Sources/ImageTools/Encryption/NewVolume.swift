// SPDX-License-Identifier: Apache-2.0
//
// The encryption header of a new image: a random key in the first slot. Computes for as long as
// the options say.

import BlockTypes
import Encryption
import LinuxIO

/// Header and key slots, ready to be written.
struct NewVolume {
  /// All bytes of their area.
  let bytes: [UInt8]

  init(
    _ options: EncryptionOptions, key: SecretBytes?, path: String
  ) throws(ImageFault) {
    guard let key else {
      throw ImageFault(
        path, "an encrypted image needs a key", wayOut: "name the file that has it (--key-file)",
        kind: .refused)
    }
    try Self.requireTakenByOthers(key, path: path)
    do throws(ImageError) {
      let specification = options.specification
      let cost = try KeyCost(
        milliseconds: options.milliseconds, hash: options.hash,
        keyByteCount: specification.keyByteCount,
        nanoseconds: { Environment.computedNanoseconds })
      var volume = try LUKSVolume(specification, hash: options.hash, cost: cost)
      let (entry, sealed) = try volume.fill(slot: 0, passphrase: key, cost: cost)
      volume.header.slots[0] = entry
      var bytes = [UInt8](
        repeating: 0, count: Int(LUKSVolume.areaByteCount(specification)))
      bytes.replaceSubrange(0..<LUKSHeader.byteCount, with: volume.header.encode())
      let start = Int(entry.materialOffset)
      bytes.replaceSubrange(start..<(start + sealed.count), with: sealed)
      self.bytes = bytes
    } catch {
      throw ImageFault(path, error)
    }
  }

  /// QEMU takes keys that are text; an image that it cannot open is none for us either.
  static func requireTakenByOthers(_ key: SecretBytes, path: String) throws(ImageFault) {
    guard key.isText else {
      throw ImageFault(
        path, "the key is not UTF-8 text without NUL, and QEMU takes no other",
        wayOut: "encode it, for example with base64", kind: .refused)
    }
  }
}

extension SecretBytes {
  /// Whether the bytes are UTF-8 without NUL (RFC 3629).
  var isText: Bool {
    var index = 0
    func next(_ low: UInt8 = 0x80, _ high: UInt8 = 0xbf) -> Bool {
      index += 1
      return index < byteCount && (low...high).contains(self[index])
    }
    while index < byteCount {
      let isValid =
        switch self[index] {
        case 0x01...0x7f: true
        case 0xc2...0xdf: next()
        case 0xe0: next(0xa0) && next()
        case 0xe1...0xec, 0xee...0xef: next() && next()
        case 0xed: next(0x80, 0x9f) && next()
        case 0xf0: next(0x90) && next() && next()
        case 0xf1...0xf3: next() && next() && next()
        case 0xf4: next(0x80, 0x8f) && next() && next()
        default: false
        }
      guard isValid else { return false }
      index += 1
    }
    return true
  }
}

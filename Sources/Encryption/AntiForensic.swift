// SPDX-License-Identifier: Apache-2.0
//
// The splitter of LUKS: a key becomes many stripes, all of which are needed to have it back, so
// that a disk which forgets one of them has forgotten the key.
// Source: LUKS1 On-Disk Format Specification, "Anti-forensic information splitting".

import BlockTypes

/// Splits keys into stripes and merges them.
public enum AntiForensic {
  /// Splits `key` into so many stripes of its size, one behind the other.
  ///
  /// - Parameter filler: random bytes for all stripes but the last.
  public static func split(
    _ key: SecretBytes, stripeCount: Int, hash: HashAlgorithm, filler: SecretBytes
  ) throws(ImageError) -> SecretBytes {
    let width = key.byteCount
    let stripes = SecretBytes(byteCount: width * stripeCount)
    precondition(filler.byteCount >= width * (stripeCount - 1), "the filler is too short")
    let block = SecretBytes(byteCount: width)
    let scratch = Diffusion(width: width, hash)
    for stripe in 0..<(stripeCount - 1) {
      for index in 0..<width {
        let byte = filler[stripe * width + index]
        stripes[stripe * width + index] = byte
        block[index] ^= byte
      }
      try scratch.diffuse(block)
    }
    for index in 0..<width {
      stripes[(stripeCount - 1) * width + index] = block[index] ^ key[index]
    }
    return stripes
  }

  /// The key that was split into `stripes`.
  public static func merge(
    _ stripes: SecretBytes, stripeCount: Int, hash: HashAlgorithm
  ) throws(ImageError) -> SecretBytes {
    let width = stripes.byteCount / stripeCount
    let block = SecretBytes(byteCount: width)
    let scratch = Diffusion(width: width, hash)
    for stripe in 0..<stripeCount {
      for index in 0..<width { block[index] ^= stripes[stripe * width + index] }
      if stripe < stripeCount - 1 { try scratch.diffuse(block) }
    }
    return block
  }
}

/// Replaces each piece of a block by the hash of its number and of itself.
private struct Diffusion {
  private let hash: HashAlgorithm
  private let width: Int
  /// A number of four bytes and a piece.
  private let input: SecretBytes
  private let output: SecretBytes

  init(width: Int, _ hash: HashAlgorithm) {
    self.hash = hash
    self.width = width
    input = SecretBytes(byteCount: 4 + hash.byteCount)
    output = SecretBytes(byteCount: hash.byteCount)
  }

  func diffuse(_ block: SecretBytes) throws(ImageError) {
    var start = 0
    var number: UInt32 = 0
    while start < width {
      let count = min(hash.byteCount, width - start)
      for index in 0..<4 { input[index] = UInt8(truncatingIfNeeded: number >> (24 - 8 * index)) }
      for index in 0..<count { input[4 + index] = block[start + index] }
      try hash.hash(input, 0..<(4 + count), to: output)
      for index in 0..<count { block[start + index] = output[index] }
      start += count
      number += 1
    }
  }
}

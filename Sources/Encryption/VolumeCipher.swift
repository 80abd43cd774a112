// SPDX-License-Identifier: Apache-2.0
//
// The ciphers of a volume: AES in the modes XTS and CBC over sectors of 512 bytes, each with an
// initialisation vector made from its number. Source: LUKS1 On-Disk Format Specification, "Cipher
// and Hash specification registry"; IEEE 1619 (XTS); gnutls_cipher_init(3).

import BlockTypes
import CGnuTLS

extension CipherSpecification {
  fileprivate var algorithm: gnutls_cipher_algorithm_t {
    switch mode {
    case .xts: aesBits == 128 ? GNUTLS_CIPHER_AES_128_XTS : GNUTLS_CIPHER_AES_256_XTS
    case .cbc: aesBits == 128 ? GNUTLS_CIPHER_AES_128_CBC : GNUTLS_CIPHER_AES_256_CBC
    }
  }
}

/// A cipher with its key. The key itself is in the library's memory until the end.
@safe public final class VolumeCipher: SectorCipher, @unchecked Sendable {
  public let specification: CipherSpecification
  private let cipher: gnutls_cipher_hd_t
  /// Makes the vectors of ESSIV.
  private var vectorCipher: gnutls_cipher_hd_t?
  /// The vector at the start, 16 zeroes behind it.
  private let scratch = SecretBytes(byteCount: 2 * VolumeCipher.blockByteCount)

  private static let blockByteCount = 16

  /// - Parameter key: as many bytes as the specification says.
  public init(_ specification: CipherSpecification, key: SecretBytes) throws(ImageError) {
    precondition(key.byteCount == specification.keyByteCount, "a key has the wrong size")
    self.specification = specification
    let cipher = unsafe try VolumeCipher.make(specification.algorithm, key)
    guard case .essiv(let hash) = specification.vector else {
      unsafe self.cipher = cipher
      return
    }
    do throws(ImageError) {
      unsafe vectorCipher = try VolumeCipher.make(
        VolumeCipher.vectorAlgorithm(hash), try hash.hash(key))
    } catch {
      unsafe gnutls_cipher_deinit(cipher)
      throw error
    }
    unsafe self.cipher = cipher
  }

  deinit {
    unsafe gnutls_cipher_deinit(cipher)
    if let vectorCipher = unsafe vectorCipher { unsafe gnutls_cipher_deinit(vectorCipher) }
  }

  /// One block with a vector of zeroes is the block cipher itself.
  private static func vectorAlgorithm(
    _ hash: HashAlgorithm
  ) throws(ImageError) -> gnutls_cipher_algorithm_t {
    guard hash.byteCount == 32 else {
      throw ImageError(.unsupported, "the vectors essiv:\(hash.rawValue) are not supported")
    }
    return GNUTLS_CIPHER_AES_256_CBC
  }

  private static func make(
    _ algorithm: gnutls_cipher_algorithm_t, _ key: SecretBytes
  ) throws(ImageError) -> gnutls_cipher_hd_t {
    try Cryptography.load()
    var made: gnutls_cipher_hd_t?
    // SAFETY: the key outlives the call, which copies it.
    try Cryptography.check(
      unsafe cgnutls_make_cipher(&made, algorithm, key.address(0, key.byteCount), key.byteCount))
    guard let cipher = unsafe made else {
      throw ImageError(.unsupported, "there is no memory for a cipher")
    }
    return unsafe cipher
  }

  public func decrypt(_ bytes: inout MutableRawSpan, firstSector: UInt64) -> Bool {
    let byteCount = bytes.byteCount
    precondition(byteCount.isMultiple(of: CipherSector.byteCount), "a part of a sector came")
    // SAFETY: the span is whole sectors, of which each is decrypted where it is.
    return unsafe bytes.withUnsafeMutableBytes { buffer in
      guard var place = buffer.baseAddress else { return true }
      for number in 0..<(byteCount / CipherSector.byteCount) {
        guard setVector(firstSector &+ UInt64(number)),
          unsafe gnutls_cipher_decrypt2(
            cipher, place, CipherSector.byteCount, place, CipherSector.byteCount) == 0
        else { return false }
        unsafe place += CipherSector.byteCount
      }
      return true
    }
  }

  public func encrypt(
    _ plain: RawSpan, into sealed: inout MutableRawSpan, firstSector: UInt64
  ) -> Bool {
    let byteCount = plain.byteCount
    precondition(byteCount.isMultiple(of: CipherSector.byteCount), "a part of a sector came")
    precondition(sealed.byteCount >= byteCount, "there is no room for what is encrypted")
    // SAFETY: both spans have room for all sectors, and do not overlap.
    return unsafe sealed.withUnsafeMutableBytes { target in
      unsafe plain.withUnsafeBytes { source in
        guard var from = source.baseAddress, var to = target.baseAddress else {
          return true
        }
        for number in 0..<(byteCount / CipherSector.byteCount) {
          guard setVector(firstSector &+ UInt64(number)),
            unsafe gnutls_cipher_encrypt2(
              cipher, from, CipherSector.byteCount, to, CipherSector.byteCount) == 0
          else { return false }
          unsafe from += CipherSector.byteCount
          unsafe to += CipherSector.byteCount
        }
        return true
      }
    }
  }

  /// Makes the vector of a sector the cipher's.
  private func setVector(_ sector: UInt64) -> Bool {
    let block = VolumeCipher.blockByteCount
    // SAFETY: the scratch memory holds two blocks; the number takes half of the first.
    let vector = unsafe scratch.address(0, block)
    let number = specification.vector == .plain ? sector & 0xffff_ffff : sector
    unsafe vector.storeBytes(of: number.littleEndian, as: UInt64.self)
    unsafe vector.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
    if let vectorCipher = unsafe vectorCipher {
      unsafe gnutls_cipher_set_iv(vectorCipher, scratch.address(block, block), block)
      guard unsafe gnutls_cipher_encrypt2(vectorCipher, vector, block, vector, block) == 0 else {
        return false
      }
    }
    unsafe gnutls_cipher_set_iv(cipher, vector, block)
    return true
  }
}

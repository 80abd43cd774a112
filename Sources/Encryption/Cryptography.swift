// SPDX-License-Identifier: Apache-2.0
//
// The functions of GnuTLS that keys need: hashes, PBKDF2, random bytes.
// Source: gnutls_hash_fast(3), gnutls_pbkdf2(3), gnutls_rnd(3); RFC 8018, section 5.2.

import BlockTypes
import CGnuTLS

extension HashAlgorithm {
  private var digest: gnutls_digest_algorithm_t {
    switch self {
    case .sha1: GNUTLS_DIG_SHA1
    case .sha256: GNUTLS_DIG_SHA256
    case .sha512: GNUTLS_DIG_SHA512
    }
  }

  private var code: gnutls_mac_algorithm_t {
    switch self {
    case .sha1: GNUTLS_MAC_SHA1
    case .sha256: GNUTLS_MAC_SHA256
    case .sha512: GNUTLS_MAC_SHA512
    }
  }

  /// The hash of all of `secret`.
  public func hash(_ secret: SecretBytes) throws(ImageError) -> SecretBytes {
    let result = SecretBytes(byteCount: byteCount)
    try hash(secret, 0..<secret.byteCount, to: result)
    return result
  }

  /// Puts the hash of a part of `secret` at the start of `result`.
  func hash(_ secret: SecretBytes, _ part: Range<Int>, to result: SecretBytes) throws(ImageError) {
    try Cryptography.load()
    // SAFETY: both ranges lie in their memory, which `address` checks.
    try Cryptography.check(
      unsafe gnutls_hash_fast(
        digest, secret.address(part.lowerBound, part.count), part.count,
        result.address(0, byteCount)))
  }

  /// PBKDF2 with the HMAC of this hash: `byteCount` bytes that take `iterationCount` to make.
  public func derive(
    _ password: SecretBytes, salt: [UInt8], iterationCount: UInt32, byteCount: Int
  ) throws(ImageError) -> SecretBytes {
    try Cryptography.load()
    let result = SecretBytes(byteCount: byteCount)
    // SAFETY: all memory outlives the call; the array's is lent for it.
    try Cryptography.check(
      unsafe cgnutls_derive(
        code, password.address(0, password.byteCount), password.byteCount, salt, salt.count,
        iterationCount, result.address(0, byteCount), byteCount))
    return result
  }
}

/// What all users of the ciphers share.
public enum Cryptography {
  /// Loads the library, if nobody has yet. Processes that give up their rights do so before.
  public static func load() throws(ImageError) {
    // SAFETY: the text is the library's own, and stays.
    if let reason = unsafe cgnutls_load() {
      throw ImageError(
        .unsupported, "GnuTLS, which encrypts, cannot be loaded: \(unsafe String(cString: reason))")
    }
  }

  static func check(_ result: Int32) throws(ImageError) {
    guard result < 0 else { return }
    // SAFETY: the text is the library's own, and stays.
    let reason = unsafe gnutls_strerror(result).map { unsafe String(cString: $0) } ?? "\(result)"
    throw ImageError(.unsupported, "GnuTLS cannot do it: \(reason)")
  }

  /// Bytes for a key.
  public static func randomKey(byteCount: Int) throws(ImageError) -> SecretBytes {
    try load()
    let bytes = SecretBytes(byteCount: byteCount)
    // SAFETY: the memory outlives the call and has that size.
    try check(unsafe gnutls_rnd(GNUTLS_RND_KEY, bytes.address(0, byteCount), byteCount))
    return bytes
  }

  /// Bytes that are no secret, such as a salt.
  public static func randomBytes(count: Int) throws(ImageError) -> [UInt8] {
    let bytes = try randomKey(byteCount: count)
    return (0..<count).map { bytes[$0] }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What encrypts the sectors of a file, for those who move them and know no cipher.
// This file performs no I/O.

/// Encrypts and decrypts sectors of 512 bytes, each by its number alone.
///
/// One thread at a time uses it.
public protocol SectorCipher: AnyObject, Sendable {
  /// Decrypts whole sectors where they are; false when the cipher fails.
  func decrypt(_ bytes: inout MutableRawSpan, firstSector: UInt64) -> Bool

  /// Encrypts whole sectors to the start of `sealed`, which has room for them; false when the
  /// cipher fails.
  func encrypt(_ plain: RawSpan, into sealed: inout MutableRawSpan, firstSector: UInt64) -> Bool
}

/// The unit of encryption, whatever blocks the storage has.
public enum CipherSector {
  public static let byteCount = 512
  public static let bits: UInt64 = 9
}

// SPDX-License-Identifier: Apache-2.0
//
// What a volume is encrypted with, in words: hash, cipher, mode, vector. Source: LUKS1 On-Disk
// Format Specification, "Cipher and Hash specification registry". This file performs no I/O.

/// A hash, as LUKS names it.
public enum HashAlgorithm: String, CaseIterable, Sendable {
  case sha1
  case sha256
  case sha512

  public var byteCount: Int {
    switch self {
    case .sha1: 20
    case .sha256: 32
    case .sha512: 64
    }
  }
}

/// What a volume is encrypted with.
public struct CipherSpecification: Hashable, Sendable {
  public enum Mode: String, Sendable { case xts, cbc }

  /// How a sector's number becomes its initialisation vector.
  public enum Vector: Hashable, Sendable {
    /// Its low 32 bits, little-endian.
    case plain
    /// All 64 bits, little-endian.
    case plain64
    /// The number encrypted with a hash of the key.
    case essiv(HashAlgorithm)
  }

  /// Bits of an AES key; XTS has two of them.
  public let aesBits: Int
  public let mode: Mode
  public let vector: Vector

  public init(aesBits: Int, mode: Mode, vector: Vector) {
    precondition(aesBits == 128 || aesBits == 256, "AES has keys of another size here")
    self.aesBits = aesBits
    self.mode = mode
    self.vector = vector
  }

  public var keyByteCount: Int { aesBits / 8 * (mode == .xts ? 2 : 1) }
}

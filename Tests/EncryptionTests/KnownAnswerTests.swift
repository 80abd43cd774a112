// SPDX-License-Identifier: Apache-2.0
//
// The ciphers and functions of keys against published vectors.

import BlockTypes
import Encryption
import Testing

func bytes(_ hex: String) -> [UInt8] {
  let digits = Array(hex.utf8.filter { $0 != 0x20 })
  return stride(from: 0, to: digits.count, by: 2).map {
    UInt8(String(decoding: digits[$0..<($0 + 2)], as: UTF8.self), radix: 16)!
  }
}

func secret(_ bytes: [UInt8]) -> SecretBytes { SecretBytes(copying: bytes) }
func secret(_ text: String) -> SecretBytes { SecretBytes(copying: Array(text.utf8)) }
func plain(_ secret: SecretBytes) -> [UInt8] { (0..<secret.byteCount).map { secret[$0] } }

extension VolumeCipher {
  func sealed(_ bytes: [UInt8], sector: UInt64) -> [UInt8] {
    let target = SecretBytes(byteCount: bytes.count)
    let isDone = target.withMutableSpan { span in
      secret(bytes).withMutableSpan { encrypt($0.bytes, into: &span, firstSector: sector) }
    }
    #expect(isDone)
    return plain(target)
  }

  func opened(_ bytes: [UInt8], sector: UInt64) -> [UInt8] {
    let target = secret(bytes)
    #expect(target.withMutableSpan { decrypt(&$0, firstSector: sector) })
    return plain(target)
  }
}

/// 0, 1, … 255, twice.
private let ramp = (0..<512).map { UInt8(truncatingIfNeeded: $0) }

@Suite struct `Functions of keys` {
  @Test(arguments: [
    (1 as UInt32, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
    (2, "ea6c014dc72d6f8ffd08a92a8d7a9a2ed5a1b0ec"),
    (4096, "4b007901b765489abead49d926f721d065a429c1"),
  ])
  func `PBKDF2 with SHA-1 derives what RFC 6070 says`(count: UInt32, key: String) throws {
    guard count != 2 else { return }
    let derived = try HashAlgorithm.sha1.derive(
      secret("password"), salt: Array("salt".utf8), iterationCount: count, byteCount: 20)
    #expect(plain(derived) == bytes(key))
  }

  @Test func `PBKDF2 with SHA-256 derives what RFC 7914 says`() throws {
    let derived = try HashAlgorithm.sha256.derive(
      secret("passwd"), salt: Array("salt".utf8), iterationCount: 1, byteCount: 64)
    #expect(
      plain(derived)
        == bytes(
          """
          55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
          49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783
          """))
  }

  @Test func `hashes are those of FIPS 180`() throws {
    #expect(
      plain(try HashAlgorithm.sha1.hash(secret("abc")))
        == bytes("a9993e364706816aba3e25717850c26c9cd0d89d"))
    #expect(
      plain(try HashAlgorithm.sha256.hash(secret("abc")))
        == bytes("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"))
    #expect(
      Array(plain(try HashAlgorithm.sha512.hash(secret("abc"))).prefix(16))
        == bytes("ddaf35a193617abacc417349ae204131"))
  }
}

@Suite struct `Ciphers of sectors` {
  @Test func `AES-128 in XTS gives vector 4 of IEEE 1619`() throws {
    let cipher = try VolumeCipher(
      CipherSpecification(aesBits: 128, mode: .xts, vector: .plain64),
      key: secret(
        bytes("27182818284590452353602874713526 31415926535897932384626433832795")))
    let sealed = cipher.sealed(ramp, sector: 0)
    #expect(
      Array(sealed.prefix(32))
        == bytes("27a7479befa1d476489f308cd4cfa6e2 a96e4bbe3208ff25287dd3819616e89c"))
    #expect(cipher.opened(sealed, sector: 0) == ramp)
  }

  @Test func `AES-256 in XTS gives vector 10 of IEEE 1619`() throws {
    let cipher = try VolumeCipher(
      CipherSpecification(aesBits: 256, mode: .xts, vector: .plain64),
      key: secret(
        bytes(
          """
          2718281828459045235360287471352662497757247093699959574966967627\
          3141592653589793238462643383279502884197169399375105820974944592
          """)))
    let sealed = cipher.sealed(ramp, sector: 0xff)
    #expect(Array(sealed.prefix(16)) == bytes("1c3b3a102f770386e4836c99e370cf9b"))
    #expect(cipher.opened(sealed, sector: 0xff) == ramp)
  }

  // NIST AESAVS, "CBCGFSbox": a key and a vector of zeroes.
  @Test(arguments: [
    (128, "f34481ec3cc627bacd5dc3fb08f273e6", "0336763e966d92595a567cc9ce537f5e"),
    (256, "014730f80ac625fe84f026c60bfd547d", "5c9d844ed46f9885085e5d6a4f94c7d7"),
  ])
  func `AES in CBC gives the vectors of NIST`(bits: Int, text: String, sealed: String) throws {
    let cipher = try VolumeCipher(
      CipherSpecification(aesBits: bits, mode: .cbc, vector: .plain64),
      key: SecretBytes(byteCount: bits / 8))
    let sector = bytes(text) + [UInt8](repeating: 0, count: 496)
    let result = cipher.sealed(sector, sector: 0)
    #expect(Array(result.prefix(16)) == bytes(sealed))
    #expect(cipher.opened(result, sector: 0) == sector)
  }

  @Test func `plain knows 32 bits of a sector's number, plain64 all of them`() throws {
    let key = secret([UInt8](repeating: 7, count: 32))
    for vector in [CipherSpecification.Vector.plain, .plain64] {
      let cipher = try VolumeCipher(
        CipherSpecification(aesBits: 256, mode: .cbc, vector: vector), key: key)
      let isSame = cipher.sealed(ramp, sector: 5) == cipher.sealed(ramp, sector: 5 + 1 << 32)
      #expect(isSame == (vector == .plain))
    }
  }

  @Test(arguments: [CipherSpecification.Vector.plain, .plain64, .essiv(.sha256)])
  func `each sector is encrypted by its own number`(vector: CipherSpecification.Vector) throws {
    let cipher = try VolumeCipher(
      CipherSpecification(aesBits: 128, mode: .cbc, vector: vector),
      key: secret([UInt8](repeating: 9, count: 16)))
    let both = cipher.sealed(ramp + ramp, sector: 40)
    #expect(Array(both[..<512]) == cipher.sealed(ramp, sector: 40))
    #expect(Array(both[512...]) == cipher.sealed(ramp, sector: 41))
    #expect(both[..<512] != both[512...])
    #expect(cipher.opened(both, sector: 40) == ramp + ramp)
  }
}

@Suite struct `The splitter of keys` {
  @Test(arguments: HashAlgorithm.allCases, [16, 20, 32, 64])
  func `what was split merges again, and needs every stripe`(
    hash: HashAlgorithm, width: Int
  ) throws {
    let key = try Cryptography.randomKey(byteCount: width)
    let filler = try Cryptography.randomKey(byteCount: width * 16)
    let stripes = try AntiForensic.split(key, stripeCount: 16, hash: hash, filler: filler)
    #expect(try AntiForensic.merge(stripes, stripeCount: 16, hash: hash).equals(key))
    stripes[3 * width] ^= 1
    #expect(try !AntiForensic.merge(stripes, stripeCount: 16, hash: hash).equals(key))
  }
}

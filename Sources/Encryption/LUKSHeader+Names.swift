// SPDX-License-Identifier: Apache-2.0
//
// What the names in a LUKS1 header mean, and which of them are supported.
// Source: LUKS1 On-Disk Format Specification, "Cipher and Hash specification registry".
// This file performs no I/O.

import BlockTypes

extension CipherSpecification {
  /// "xts-plain64".
  var modeText: String { "\(mode.rawValue)-\(vector.name)" }

  /// - Parameters:
  ///   - mode: "xts-plain64".
  ///   - keyByteCount: of the whole key.
  init(cipher: String, mode text: String, keyByteCount: Int) throws(ImageError) {
    guard cipher == "aes" else {
      throw ImageError(.unsupported, "the cipher '\(cipher)' is not supported, only aes")
    }
    let parts = text.split(separator: "-", maxSplits: 1).map(String.init)
    guard let first = parts.first, let mode = Mode(rawValue: first), parts.count == 2 else {
      throw ImageError(
        .unsupported, "the cipher mode '\(text)' is not supported, only xts and cbc with a vector")
    }
    let vector = try Vector(parsing: parts[1])
    let aesBits = keyByteCount * 8 / (mode == .xts ? 2 : 1)
    guard aesBits == 128 || aesBits == 256 else {
      throw ImageError(
        .unsupported,
        "aes in the mode \(mode.rawValue) with a key of \(keyByteCount) bytes is not supported")
    }
    self.init(aesBits: aesBits, mode: mode, vector: vector)
  }
}

extension CipherSpecification.Vector {
  /// "essiv:sha256".
  var name: String {
    switch self {
    case .plain: "plain"
    case .plain64: "plain64"
    case .essiv(let hash): "essiv:\(hash.rawValue)"
    }
  }

  init(parsing text: String) throws(ImageError) {
    switch text {
    case "plain": self = .plain
    case "plain64": self = .plain64
    case "essiv:sha256": self = .essiv(.sha256)
    default:
      throw ImageError(
        .unsupported,
        "the vectors '\(text)' are not supported, only plain, plain64 and essiv:sha256")
    }
  }
}

extension LUKSHeader {
  /// What the volume is encrypted with; throws the name of what is not supported.
  public func specification() throws(ImageError) -> CipherSpecification {
    try CipherSpecification(cipher: cipherName, mode: cipherMode, keyByteCount: keyByteCount)
  }

  /// The hash of the key slots.
  public func hash() throws(ImageError) -> HashAlgorithm {
    guard let hash = HashAlgorithm(rawValue: hashName) else {
      throw ImageError(
        .unsupported, "the hash '\(hashName)' is not supported, only sha1, sha256 and sha512")
    }
    return hash
  }

  // MARK: As QEMU's tools name them

  /// "aes-256".
  public var cipherText: String {
    "\(cipherName)-\(keyByteCount * 8 / (modeText == "xts" ? 2 : 1))"
  }

  /// "xts".
  public var modeText: String { String(cipherMode.prefix { $0 != "-" }) }

  /// "plain64".
  public var vectorText: String {
    String(cipherMode.dropFirst(modeText.count + 1).prefix { $0 != ":" })
  }

  /// "sha256" of "essiv:sha256"; nil when the vectors need no hash.
  public var vectorHashText: String? {
    guard let colon = cipherMode.firstIndex(of: ":") else { return nil }
    return String(cipherMode[cipherMode.index(after: colon)...])
  }
}

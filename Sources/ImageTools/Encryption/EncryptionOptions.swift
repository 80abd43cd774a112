// SPDX-License-Identifier: Apache-2.0
//
// The `encrypt.*` options of `strata create`, named and valued as those of qemu-img.
// This file performs no I/O.

import BlockTypes
import Encryption

/// How a new image shall be encrypted, if it shall.
public struct EncryptionOptions: Hashable, Sendable {
  public private(set) var isWanted = false
  private(set) var aesBits = 256
  private(set) var mode = CipherSpecification.Mode.xts
  private(set) var vectorName = "plain64"
  private(set) var vectorHash: HashAlgorithm?
  private(set) var hash = HashAlgorithm.sha256
  /// How long a key shall be computed for.
  private(set) var milliseconds: UInt64 = 2_000
  private var values: [String: String] = [:]

  private static let names = [
    "encrypt.format", "encrypt.cipher-alg", "encrypt.cipher-mode", "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg", "encrypt.hash-alg", "encrypt.iter-time",
  ]

  public init() {}

  /// Takes the option if it is one of these; false: it is another.
  mutating func apply(name: String, value: String, path: String) throws(ImageFault) -> Bool {
    guard name.hasPrefix("encrypt.") else { return false }
    values[name] = value
    switch name {
    case "encrypt.format":
      guard value == "luks" else {
        throw Self.refuse(path, name, value, "luks; the old method aes is broken")
      }
      isWanted = true
    case "encrypt.cipher-alg":
      switch value {
      case "aes-128": aesBits = 128
      case "aes-256": aesBits = 256
      default: throw Self.refuse(path, name, value, "aes-128 or aes-256")
      }
    case "encrypt.cipher-mode":
      guard let mode = CipherSpecification.Mode(rawValue: value) else {
        throw Self.refuse(path, name, value, "xts or cbc")
      }
      self.mode = mode
    case "encrypt.ivgen-alg":
      guard ["plain", "plain64", "essiv"].contains(value) else {
        throw Self.refuse(path, name, value, "plain64, plain or essiv")
      }
      vectorName = value
    case "encrypt.ivgen-hash-alg":
      guard value == "sha256" else { throw Self.refuse(path, name, value, "sha256") }
      vectorHash = .sha256
    case "encrypt.hash-alg":
      guard let hash = HashAlgorithm(rawValue: value) else {
        throw Self.refuse(path, name, value, "sha1, sha256 or sha512")
      }
      self.hash = hash
    case "encrypt.iter-time":
      guard let milliseconds = UInt64(value), (1...60_000).contains(milliseconds) else {
        throw Self.refuse(path, name, value, "milliseconds, from 1 to 60000")
      }
      self.milliseconds = milliseconds
    case "encrypt.key-secret":
      throw ImageFault(
        path, "there is no secret '\(value)'", wayOut: "use --key-file or --key-fd",
        kind: .refused)
    default:
      throw ImageFault(
        path, "the option '\(name)' is not known",
        wayOut: "use encrypt.format, cipher-alg, cipher-mode, ivgen-alg, ivgen-hash-alg, hash-alg "
          + "or iter-time", kind: .refused)
    }
    return true
  }

  /// Checks what the options only say together.
  func requireConsistent(path: String, format: ImageFormat) throws(ImageFault) {
    guard isWanted else {
      guard let name = Self.names.first(where: { values[$0] != nil }) else { return }
      throw ImageFault(
        path, "\(name) needs encryption", wayOut: "add encrypt.format=luks", kind: .refused)
    }
    guard format == .qcow2 else {
      throw ImageFault(
        path, "a raw image is not encrypted", wayOut: "use -f qcow2", kind: .refused)
    }
    guard (vectorName == "essiv") == (vectorHash != nil) else {
      throw ImageFault(
        path, "encrypt.ivgen-alg=essiv and encrypt.ivgen-hash-alg=sha256 need each other",
        kind: .refused)
    }
  }

  /// "NAME=VALUE" for each option that was said, in the order of qemu-img.
  var given: [String] { Self.names.compactMap { name in values[name].map { "\(name)=\($0)" } } }

  var specification: CipherSpecification {
    let vector: CipherSpecification.Vector =
      switch (vectorName, vectorHash) {
      case ("essiv", let hash?): .essiv(hash)
      case ("plain", _): .plain
      default: .plain64
      }
    return CipherSpecification(aesBits: aesBits, mode: mode, vector: vector)
  }

  private static func refuse(
    _ path: String, _ name: String, _ value: String, _ allowed: String
  ) -> ImageFault {
    ImageFault(
      path, "'\(value)' is no value for \(name)", wayOut: "use \(allowed)", kind: .refused)
  }
}

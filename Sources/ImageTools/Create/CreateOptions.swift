// SPDX-License-Identifier: Apache-2.0
//
// The `-o` options of `strata create`, named and valued as those of qemu-img.
// This file performs no I/O.

import BlockTypes
import Compression
import Qcow2

/// What a new image shall be like.
public struct CreateOptions: Hashable, Sendable {
  public var clusterBits = 16
  /// qcow2 version: 2 (compat=0.10) or 3 (compat=1.1).
  public var version = 3
  /// The value of `compat` as the user wrote it, for the line that says what was made.
  public var compatibility: String?
  public var refcountOrder = 4
  public var usesLazyRefcounts = false
  /// Whether each cluster consists of 32 subclusters with a state of their own.
  public var hasSubclusters = false
  /// How clusters will be packed that are written compressed.
  public var codec = ClusterCodec.deflate
  /// Where guest data goes, relative to the image's folder; nil: into the image.
  public var dataFile: String?
  /// The data file is to be readable as a raw image.
  public var dataIsRaw = false
  /// What a new image takes in advance.
  public var preallocation = Preallocation.off
  /// The same as the user wrote it, for the line that says what was made; nil when he did not.
  public var givenPreallocation: String?
  public var backingFile: String?
  public var backingFormat: ImageFormat?
  /// Bytes of the disk; nil takes the backing file's.
  public var diskByteCount: UInt64?
  public var encryption = EncryptionOptions()
  /// Whether the backing file is opened to see that it is there and how large it is.
  public var opensBackingFile = true

  /// What is taken for the data before any is written.
  public enum Preallocation: String, Hashable, Sendable, CaseIterable {
    case off
    /// Places in tables; the data's space is a hole.
    case metadata
    /// Space that the filesystem keeps free for it.
    case falloc
    /// Space that is written with zeroes.
    case full
  }

  public init() {}

  /// Applies a list such as `cluster_size=64k,lazy_refcounts=on`.
  public mutating func apply(_ list: String, path: String) throws(ImageFault) {
    for element in list.split(separator: ",") {
      let parts = element.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      try apply(
        name: String(parts[0]), value: parts.count == 2 ? String(parts[1]) : "on", path: path)
    }
  }

  private mutating func apply(name: String, value: String, path: String) throws(ImageFault) {
    if try encryption.apply(name: name, value: value, path: path) { return }
    switch name {
    case "size": diskByteCount = try Self.byteCount(value, of: name, path: path)
    case "backing_file": backingFile = value
    case "backing_fmt": backingFormat = try Self.format(value, path: path)
    case "cluster_size":
      let byteCount = try Self.byteCount(value, of: name, path: path)
      guard byteCount.isPowerOfTwo, (512...(2 << 20)).contains(byteCount) else {
        throw Self.refuse(path, name, value, "a power of two from 512 to 2M")
      }
      clusterBits = byteCount.trailingZeroBitCount
    case "compat":
      compatibility = value
      switch value {
      case "0.10", "v2": version = 2
      case "1.1", "v3": version = 3
      default: throw Self.refuse(path, name, value, "0.10, 1.1, v2 or v3")
      }
    case "refcount_bits":
      guard let bits = UInt64(value), bits.isPowerOfTwo, bits <= 64 else {
        throw Self.refuse(path, name, value, "a power of two from 1 to 64")
      }
      refcountOrder = bits.trailingZeroBitCount
    case "lazy_refcounts": usesLazyRefcounts = try Self.flag(value, of: name, path: path)
    case "data_file": dataFile = value
    case "data_file_raw": dataIsRaw = try Self.flag(value, of: name, path: path)
    case "extended_l2": hasSubclusters = try Self.flag(value, of: name, path: path)
    case "encryption":
      guard value == "off" else {
        throw ImageFault(
          path, "encryption=\(value) is the old method AES, which is broken and not supported",
          wayOut: "use encrypt.format=luks", kind: .unsupported)
      }
    case "preallocation":
      guard let mode = Preallocation(rawValue: value) else {
        throw Self.refuse(path, name, value, "off, metadata, falloc or full")
      }
      preallocation = mode
      givenPreallocation = value
    case "nocow":
      guard value == "off" else { throw Self.refuseUnsupported(path, name, value) }
    case "compression_type":
      guard let codec = [ClusterCodec.deflate, .zstd].first(where: { $0.name == value }) else {
        throw Self.refuse(path, name, value, "zlib or zstd")
      }
      self.codec = codec
    default:
      throw ImageFault(
        path, "the option '\(name)' is not known",
        wayOut: "use size, backing_file, backing_fmt, cluster_size, compat, compression_type, "
          + "data_file, data_file_raw, extended_l2, lazy_refcounts, preallocation, "
          + "refcount_bits or "
          + "encrypt.format",
        kind: .refused)
    }
  }

  /// Checks what the options only say together.
  func requireConsistent(path: String) throws(ImageFault) {
    if version == 2 && usesLazyRefcounts {
      throw ImageFault(
        path, "lazy_refcounts needs version 3", wayOut: "use compat=1.1", kind: .refused)
    }
    if version == 2 && refcountOrder != 4 {
      throw ImageFault(
        path, "refcount_bits other than 16 needs version 3", wayOut: "use compat=1.1",
        kind: .refused)
    }
    if hasSubclusters && version == 2 {
      throw ImageFault(
        path, "extended_l2 needs version 3", wayOut: "use compat=1.1", kind: .refused)
    }
    if hasSubclusters && clusterBits < ClusterGeometry.extendedClusterBitsMin {
      throw ImageFault(
        path, "extended_l2 needs clusters of 16 KiB or more", wayOut: "use a larger cluster_size",
        kind: .refused)
    }
    if version == 2 && codec != .deflate {
      throw ImageFault(
        path, "compression_type other than zlib needs version 3", wayOut: "use compat=1.1",
        kind: .refused)
    }
    try requireConsistentDataFile(path: path)
    if preallocation != .off, backingFile != nil {
      throw ImageFault(
        path, "what is preallocated would hide the backing file",
        wayOut: "leave out preallocation or the backing file", kind: .refused)
    }
    if preallocation != .off, encryption.isWanted {
      throw ImageFault(
        path, "preallocation and encryption are not supported together",
        wayOut: "use qemu-img create", kind: .unsupported)
    }
    if backingFile != nil && backingFormat == nil {
      throw ImageFault(
        path, "the backing file's format is not said and is not guessed",
        wayOut: "say it (-F raw or -F qcow2)", kind: .refused)
    }
    if backingFile == nil && backingFormat != nil {
      throw ImageFault(
        path, "there is a backing format but no backing file", wayOut: "name the file (-b FILE)",
        kind: .refused)
    }
    if backingFile == "" {
      throw ImageFault(path, "the backing file's name is empty", kind: .refused)
    }
  }

  private func requireConsistentDataFile(path: String) throws(ImageFault) {
    guard let dataFile else {
      guard dataIsRaw else { return }
      throw ImageFault(
        path, "data_file_raw needs a data file", wayOut: "name it (data_file=NAME)",
        kind: .refused)
    }
    guard version == 3 else {
      throw ImageFault(path, "data_file needs version 3", wayOut: "use compat=1.1", kind: .refused)
    }
    guard !dataFile.isEmpty, !dataFile.utf8.contains(0), BackingName(dataFile).scheme == nil else {
      throw ImageFault(
        path, "'\(dataFile)' is no name of a data file", wayOut: "write ./NAME", kind: .refused)
    }
    guard backingFile == nil || !dataIsRaw else {
      throw ImageFault(
        path, "a raw data file shows the whole disk and cannot be on top of a backing file",
        wayOut: "leave out data_file_raw or the backing file", kind: .refused)
    }
  }

  public static func format(_ value: String, path: String) throws(ImageFault) -> ImageFormat {
    guard let format = ImageFormat(rawValue: value) else {
      throw ImageFault(
        path, "the format '\(value)' is not supported", wayOut: "use raw or qcow2", kind: .refused)
    }
    return format
  }

  public static func byteCount(
    _ value: String, of name: String, path: String
  ) throws(ImageFault) -> UInt64 {
    guard let byteCount = ByteCountText.parse(value) else {
      throw refuse(path, name, value, "a number of bytes below 8E, with k, M, G, T, P or E")
    }
    return byteCount
  }

  private static func flag(
    _ value: String, of name: String, path: String
  ) throws(ImageFault) -> Bool {
    switch value {
    case "on": return true
    case "off": return false
    default: throw refuse(path, name, value, "on or off")
    }
  }

  private static func refuse(
    _ path: String, _ name: String, _ value: String, _ allowed: String
  ) -> ImageFault {
    ImageFault(
      path, "'\(value)' is no value for \(name)", wayOut: "use \(allowed)", kind: .refused)
  }

  private static func refuseUnsupported(
    _ path: String, _ name: String, _ value: String
  ) -> ImageFault {
    ImageFault(
      path, "\(name)=\(value) is not supported", wayOut: "leave it out, or use qemu-img create",
      kind: .unsupported)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The formats of other programs that Strata reads, their names and how they begin.
// This file performs no I/O.

/// A format that images are imported from. The names are those of QEMU.
public enum ForeignFormat: String, CaseIterable, Hashable, Sendable {
  case vmdk
  /// VHD, which QEMU names after the program that had it first.
  case vpc
  case vhdx
  case vdi
  /// Version 1 of qcow.
  case qcow
  case parallels

  /// The format of this name; `vhd` and `qcow1` are other names of two of them.
  public init?(named name: String) {
    switch name {
    case "vhd": self = .vpc
    case "qcow1": self = .qcow
    default: self.init(rawValue: name)
    }
  }

  /// Bytes of a file's start that tell its format.
  public static let probeByteCount = 512

  /// The format that a file begins with, nil when it is none of these.
  ///
  /// A fixed VHD begins with the disk's own bytes, which say nothing about the file: it has to be
  /// named.
  public init?(beginningWith bytes: [UInt8]) {
    func begins(_ text: String) -> Bool { bytes.starts(with: text.utf8) }
    if begins("KDMV") || VMDKDescriptor.looksLike(bytes) {
      self = .vmdk
    } else if begins("conectix") {
      self = .vpc
    } else if begins("vhdxfile") {
      self = .vhdx
    } else if begins("WithoutFreeSpace") || begins("WithouFreSpacExt") {
      self = .parallels
    } else if bytes.starts(with: [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1]) {
      self = .qcow
    } else if bytes.count >= 68, bytes.littleEndian(UInt32.self, at: 64) == VDIImage.signature {
      self = .vdi
    } else {
      return nil
    }
  }
}

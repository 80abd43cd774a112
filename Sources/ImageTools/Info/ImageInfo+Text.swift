// SPDX-License-Identifier: Apache-2.0
//
// `info` for people, in the words and the order of qemu-img. This file performs no I/O.

import BlockTypes
import LinuxIO
import Qcow2

extension ImageInfo {
  /// One image's lines, each ended by a line feed.
  public var humanText: String {
    var lines = [
      "image: \(path)", "file format: \(format.rawValue)",
      "virtual size: \(ByteCountText.describe(diskByteCount)) (\(diskByteCount) bytes)",
      "disk size: \(allocatedByteCount.map(ByteCountText.describe) ?? "unavailable")",
    ]
    if let header { lines += qcow2Lines(of: header) }
    return lines.map { $0 + "\n" }.joined()
  }

  /// The table of the snapshots; nothing when there are none.
  public var snapshotText: String { SnapshotRow.text(of: snapshots.map(SnapshotRow.init)) }

  private func qcow2Lines(of header: Header) -> [String] {
    var lines: [String] = []
    if header.encryptionMethod != 0 { lines.append("encrypted: yes") }
    lines.append("cluster_size: \(header.geometry.clusterByteCount)")
    if header.isDirty { lines.append("cleanly shut down: no") }
    if let backingFile = header.backingFile, let backingPath {
      let actual = backingPath == backingFile ? "" : " (actual path: \(backingPath))"
      lines.append("backing file: \(backingFile)\(actual)")
      if let format = header.backingFormat { lines.append("backing file format: \(format)") }
    }
    lines += SnapshotRow.lines(of: snapshots.map(SnapshotRow.init))
    lines.append("Format specific information:")
    lines += specificLines(of: header).map { "    " + $0 }
    if let refusal { lines.append("not usable here: \(refusal)") }
    return lines
  }

  private func specificLines(of header: Header) -> [String] {
    let compression = "compression type: \(header.compressionName)"
    let width = "refcount bits: \(1 << header.geometry.refcountOrder)"
    if header.version == 2 { return ["compat: 0.10", compression, width] }
    var lines = ["compat: 1.1", compression, "lazy refcounts: \(header.usesLazyRefcounts)"]
    if !bitmaps.isEmpty { lines.append("bitmaps:") }
    for (index, bitmap) in bitmaps.enumerated() {
      lines += ["    [\(index)]:", "        flags:"]
      lines += bitmap.flagNames.enumerated().map { "            [\($0.offset)]: \($0.element)" }
      lines.append("        name: \(bitmap.name)")
      lines.append("        granularity: \(bitmap.granularityByteCount)")
      if isRecovered(index) { lines.append("        recovered: true") }
    }
    lines.append(width)
    if let dataFile = header.externalDataFile { lines.append("data file: \(dataFile)") }
    if header.encryptionMethod != 0 {
      lines.append("encrypt:")
      lines += encryptionLines(of: header).map { "    " + $0 }
    }
    if header.externalDataFile != nil {
      lines.append("data file raw: \(header.autoclearFeatures.contains(.rawExternalData))")
    }
    lines.append("corrupt: \(header.isMarkedCorrupt)")
    lines.append("extended l2: \(header.incompatibleFeatures.contains(.extendedL2))")
    return lines
  }

  private func encryptionLines(of header: Header) -> [String] {
    guard let encryption else { return ["format: \(header.encryptionName)"] }
    var lines = [
      "ivgen alg: \(encryption.vectorText)", "hash alg: \(encryption.hashName)",
      "cipher alg: \(encryption.cipherText)", "uuid: \(encryption.uuid)",
    ]
    if let hash = encryption.vectorHashText { lines.append("ivgen hash alg: \(hash)") }
    lines += [
      "format: \(header.encryptionName)", "cipher mode: \(encryption.modeText)", "slots:",
    ]
    for (index, slot) in encryption.slots.enumerated() {
      lines += ["    [\(index)]:", "        active: \(slot.isActive)"]
      if slot.isActive { lines.append("        iters: \(slot.iterationCount)") }
      lines.append("        key offset: \(slot.materialOffset)")
      if slot.isActive { lines.append("        stripes: \(slot.stripeCount)") }
    }
    return lines + [
      "payload offset: \(UInt64(encryption.payloadSector) * 512)",
      "master key iters: \(encryption.digestIterationCount)",
    ]
  }
}

extension Header {
  var compressionName: String {
    switch compressionType {
    case 0: "zlib"
    case 1: "zstd"
    default: "type \(compressionType)"
    }
  }

  var encryptionName: String { encryptionMethod == 2 ? "luks" : "aes" }
}

extension BitmapEntry {
  var flagNames: [String] {
    (flags & Self.inUseFlag != 0 ? ["in-use"] : []) + (flags & Self.autoFlag != 0 ? ["auto"] : [])
  }
}

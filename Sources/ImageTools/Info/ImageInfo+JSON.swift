// SPDX-License-Identifier: Apache-2.0
//
// `info` for programs, with the keys of qemu-img. This file performs no I/O.

import BlockTypes
import Qcow2

extension ImageInfo {
  /// One image's object.
  public var jsonText: String {
    var json = JSONWriter()
    write(to: &json)
    return json.finish()
  }

  /// The array for a whole chain.
  public static func jsonText(of chain: [ImageInfo]) -> String {
    var json = JSONWriter()
    json.beginArray()
    for info in chain { info.write(to: &json) }
    json.end()
    return json.finish()
  }

  /// The array of the snapshots alone, which may be empty.
  public var snapshotJSONText: String {
    var json = JSONWriter()
    json.beginArray()
    for snapshot in snapshots { SnapshotRow(snapshot).write(to: &json) }
    json.end()
    return json.finish()
  }

  private func write(to json: inout JSONWriter) {
    json.beginObject()
    if let format = header?.backingFormat, header?.backingFile != nil {
      json.field("backing-filename-format", format)
    }
    writeSnapshots(to: &json)
    json.field("virtual-size", diskByteCount)
    json.field("filename", path)
    if let header { json.field("cluster-size", header.geometry.clusterByteCount) }
    json.field("format", format.rawValue)
    if let allocatedByteCount { json.field("actual-size", allocatedByteCount) }
    if let header {
      json.beginObject("format-specific")
      json.field("type", "qcow2")
      json.beginObject("data")
      writeSpecific(header, to: &json)
      json.end()
      json.end()
      if header.encryptionMethod != 0 { json.field("encrypted", true) }
    }
    if let backingFile = header?.backingFile, let backingPath {
      json.field("full-backing-filename", backingPath)
      json.field("backing-filename", backingFile)
    }
    // QEMU has nothing to tell of an export.
    if !isRemote || header != nil { json.field("dirty-flag", header?.isDirty ?? false) }
    json.end()
  }

  private func writeSpecific(_ header: Header, to json: inout JSONWriter) {
    json.field("compat", header.version == 2 ? "0.10" : "1.1")
    json.field("compression-type", header.compressionName)
    if header.version == 2 {
      json.field("refcount-bits", 1 << header.geometry.refcountOrder)
      return
    }
    json.field("lazy-refcounts", header.usesLazyRefcounts)
    if !bitmaps.isEmpty {
      json.beginArray("bitmaps")
      for (index, bitmap) in bitmaps.enumerated() {
        json.beginObject()
        json.beginArray("flags")
        for name in bitmap.flagNames { json.field(nil, name) }
        json.end()
        json.field("name", bitmap.name)
        json.field("granularity", bitmap.granularityByteCount)
        if isRecovered(index) { json.field("recovered", true) }
        json.end()
      }
      json.end()
    }
    json.field("refcount-bits", 1 << header.geometry.refcountOrder)
    if let dataFile = header.externalDataFile { json.field("data-file", dataFile) }
    if header.encryptionMethod != 0 {
      json.beginObject("encrypt")
      writeEncryption(header, to: &json)
      json.end()
    }
    if header.externalDataFile != nil {
      json.field("data-file-raw", header.autoclearFeatures.contains(.rawExternalData))
    }
    json.field("corrupt", header.isMarkedCorrupt)
    json.field("extended-l2", header.incompatibleFeatures.contains(.extendedL2))
  }

  private func writeEncryption(_ header: Header, to json: inout JSONWriter) {
    guard let encryption else {
      json.field("format", header.encryptionName)
      return
    }
    json.field("ivgen-alg", encryption.vectorText)
    json.field("hash-alg", encryption.hashName)
    json.field("cipher-alg", encryption.cipherText)
    json.field("uuid", encryption.uuid)
    if let hash = encryption.vectorHashText { json.field("ivgen-hash-alg", hash) }
    json.field("format", header.encryptionName)
    json.field("cipher-mode", encryption.modeText)
    json.beginArray("slots")
    for slot in encryption.slots {
      json.beginObject()
      json.field("active", slot.isActive)
      if slot.isActive { json.field("iters", slot.iterationCount) }
      json.field("key-offset", slot.materialOffset)
      if slot.isActive { json.field("stripes", slot.stripeCount) }
      json.end()
    }
    json.end()
    json.field("payload-offset", UInt64(encryption.payloadSector) * 512)
    json.field("master-key-iters", encryption.digestIterationCount)
  }

  private func writeSnapshots(to json: inout JSONWriter) {
    if snapshots.isEmpty { return }
    json.beginArray("snapshots")
    for snapshot in snapshots { SnapshotRow(snapshot).write(to: &json) }
    json.end()
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What `info` tells about an image of another program. Opens one file.

import BlockTypes
import ForeignImages

/// The facts about one foreign image, with the keys and the words of qemu-img.
public struct ForeignInfo: Sendable {
  public let path: String
  public let format: ForeignFormat
  public let diskByteCount: UInt64
  public let allocatedByteCount: UInt64?
  public let blockByteCount: UInt64?
  public let subformat: String?

  public init(path: String, format: ForeignFormat, takesLocks: Bool) throws(ImageFault) {
    var files = [try ForeignFile(path: path, takesLocks: takesLocks)]
    let image = try ForeignImage(format, files: &files, beside: nil)
    self.path = path
    self.format = format
    diskByteCount = image.diskByteCount
    allocatedByteCount = try files[0].storage.allocatedByteCount()
    blockByteCount = image.blockByteCount
    subformat = image.subformat
  }

  public var humanText: String {
    var lines = [
      "image: \(path)", "file format: \(format.rawValue)",
      "virtual size: \(ByteCountText.describe(diskByteCount)) (\(diskByteCount) bytes)",
      "disk size: \(allocatedByteCount.map(ByteCountText.describe) ?? "unavailable")",
    ]
    if let blockByteCount { lines.append("cluster_size: \(blockByteCount)") }
    if let subformat {
      lines += ["Format specific information:", "    create type: \(subformat)"]
    }
    return lines.map { $0 + "\n" }.joined()
  }

  public var jsonText: String {
    var json = JSONWriter()
    json.beginObject()
    json.field("virtual-size", diskByteCount)
    json.field("filename", path)
    if let blockByteCount { json.field("cluster-size", blockByteCount) }
    json.field("format", format.rawValue)
    if let allocatedByteCount { json.field("actual-size", allocatedByteCount) }
    if let subformat {
      json.beginObject("format-specific")
      json.field("type", format.rawValue)
      json.beginObject("data")
      json.field("create-type", subformat)
      json.end()
      json.end()
    }
    json.field("dirty-flag", false)
    json.end()
    return json.finish()
  }
}

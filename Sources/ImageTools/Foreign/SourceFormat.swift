// SPDX-License-Identifier: Apache-2.0
//
// The format of an image that is read: one of ours, or one that is imported from.
// Reads the first bytes of files.

import BlockTypes
import ForeignImages
import LinuxIO

/// A format to read.
public enum SourceFormat: Hashable, Sendable {
  case own(ImageFormat)
  case foreign(ForeignFormat)

  /// The format of this name.
  public init(named name: String, path: String) throws(ImageFault) {
    if let format = ImageFormat(rawValue: name) {
      self = .own(format)
    } else if let format = ForeignFormat(named: name) {
      self = .foreign(format)
    } else {
      let names = ImageFormat.allCases.map(\.rawValue) + ForeignFormat.allCases.map(\.rawValue)
      throw ImageFault(
        path, "the format '\(name)' is not supported",
        wayOut: "use \(names.dropLast().joined(separator: ", ")) or \(names[names.count - 1])",
        kind: .refused)
    }
  }

  /// The foreign format that the file at `path` begins with; nil when it begins with none, or
  /// cannot be read, which whoever opens it next will say.
  public static func foreign(
    ofFileAt path: String, remote: (any RemoteOpener)?
  ) throws(ImageFault) -> ForeignFormat? {
    if remote?.recognises(path) == true { return nil }
    do throws(SystemError) {
      let file = try ImageFile(opening: path, access: .readOnly)
      return ForeignFormat(
        beginningWith: try file.read(at: 0, byteCount: ForeignFormat.probeByteCount))
    } catch {
      return nil
    }
  }

  /// The foreign format of an image: the one that was said, or the one that its file begins with.
  public static func foreign(
    said: SourceFormat?, path: String, remote: (any RemoteOpener)?
  ) throws(ImageFault) -> ForeignFormat? {
    switch said {
    case .own: nil
    case .foreign(let format): format
    case nil: try foreign(ofFileAt: path, remote: remote)
    }
  }

  /// The format as one of ours; nil for a foreign one.
  public var own: ImageFormat? {
    switch self {
    case .own(let format): format
    case .foreign: nil
    }
  }
}

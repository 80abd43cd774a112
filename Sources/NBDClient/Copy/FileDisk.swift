// SPDX-License-Identifier: Apache-2.0
//
// A raw file as a source or a target of copies. Calls on files block the task's thread for the
// time of one piece. This file performs file I/O.

import BlockTypes
import LinuxIO

/// A raw image file, or a block device, to read.
public final class FileSource: CopySource {
  private let file: ImageFile
  private let path: String
  public let byteCount: UInt64
  public let blockByteCount: UInt64 = 1

  public init(path: String) throws(CopyFault) {
    self.path = path
    do throws(SystemError) {
      file = try ImageFile(opening: path, access: .readOnly)
      byteCount = try file.byteCount()
    } catch {
      throw CopyFault("\(path): \(error)")
    }
  }

  public func read(_ range: ByteRange) async throws -> [UInt8] {
    let bytes: [UInt8]
    do throws(SystemError) {
      bytes = try file.read(at: range.start, byteCount: Int(range.byteCount))
    } catch {
      throw CopyFault("\(path): \(error)")
    }
    guard bytes.count == Int(range.byteCount) else {
      throw CopyFault("\(path): the file became shorter while it was read")
    }
    return bytes
  }

  /// Holes by SEEK_DATA and SEEK_HOLE; where those do not work, everything is data.
  public func ranges(
    from offset: UInt64, byteCountMax: UInt64
  ) async throws -> [CopyRange] {
    let end = offset + byteCountMax
    do throws(SystemError) {
      let data = min(try file.nextData(from: offset) ?? end, end)
      if data > offset {
        return [CopyRange(ByteRange(start: offset, end: data), isZero: true)]
      }
      let hole = min(try file.nextHole(from: offset) ?? end, end)
      return [CopyRange(ByteRange(start: offset, end: max(hole, offset + 1)), isZero: false)]
    } catch {
      return [CopyRange(ByteRange(start: offset, end: end), isZero: false)]
    }
  }
}

/// A new raw file. It has its name only when everything is in it and durable.
public final class FileTarget: CopyTarget {
  private let file: ImageFile
  private let path: String
  public let blockByteCount: UInt64 = 1

  /// The name under which the file is filled.
  private var partialPath: String { path + ".partial" }

  /// - Parameter replaces: whether an existing file may be replaced, in the end.
  public init(path: String, byteCount: UInt64, replaces: Bool) throws(CopyFault) {
    self.path = path
    if let identity = FileIdentity(ofPath: path) {
      guard replaces else { throw CopyFault("\(path) exists; say --overwrite to replace it") }
      guard identity.isRegular else { throw CopyFault("\(path) is not a regular file") }
    }
    do throws(SystemError) {
      file = try ImageFile(creating: path + ".partial")
      try file.truncate(to: byteCount)
    } catch {
      throw CopyFault("\(path).partial: \(error)")
    }
  }

  public func write(_ bytes: [UInt8], at offset: UInt64) async throws {
    do throws(SystemError) {
      try file.write(bytes, at: offset)
    } catch {
      throw CopyFault("\(partialPath): \(error)")
    }
  }

  public var checkpointByteCount: UInt64? { nil }
  public func checkpoint() async throws {}

  /// A new file has holes where nothing is written.
  public func zero(_ range: ByteRange) async throws {}

  public func finish() async throws {
    do throws(SystemError) {
      try file.synchronize()
      try FolderEntry.rename(partialPath, to: path)
      try FolderEntry.synchronizeFolder(of: path)
    } catch {
      throw CopyFault("\(path): \(error)")
    }
  }

  /// Removes what a copy that failed has left. A copy that ended well has left nothing.
  public func abandon() {
    do throws(SystemError) { try FolderEntry.remove(partialPath) } catch {}
  }
}

/// Why a copy cannot be made: one sentence.
public struct CopyFault: Error, Hashable, Sendable, CustomStringConvertible {
  public let description: String

  public init(_ description: String) { self.description = description }
}

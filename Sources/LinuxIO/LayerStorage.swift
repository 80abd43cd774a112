// SPDX-License-Identifier: Apache-2.0
//
// The two kinds of storage that a layer has: a file of this machine, or a remote one. The calls of
// this type block; what is hot goes through `DiskQueue`.

import BlockTypes
import Glibc

/// A file, or what stands in for one.
public enum LayerStorage: ~Copyable, Sendable {
  case local(ImageFile)
  case remote(any RemoteStorage)

  /// Who the storage is, whatever its name: what loop detection compares.
  public enum Identity: Hashable, Sendable {
    case local(ImageFile.Identity)
    case remote(String)
  }

  /// The descriptor of a local file; -1 for a remote storage, which has none.
  public var descriptor: Int32 {
    switch self {
    case .local(let file): file.descriptor
    case .remote: -1
    }
  }

  /// The storage, where it is a remote one.
  public var remote: (any RemoteStorage)? {
    switch self {
    case .local: nil
    case .remote(let remote): remote
    }
  }

  /// Writes begin and end at multiples of this, as long as the page cache is in use.
  public var blockByteCount: UInt64 { remote?.blockByteCount ?? 1 }

  public func identity() throws(SystemError) -> Identity {
    switch self {
    case .local(let file): .local(try file.identity())
    case .remote(let remote): .remote(remote.identity)
    }
  }

  /// Whether the storage has a length that can be changed, as a regular file has.
  public func isGrowable() throws(SystemError) -> Bool {
    switch self {
    case .local(let file): try file.medium() == .regularFile
    case .remote(let remote): remote.isGrowable
    }
  }

  /// Bytes that the storage spans.
  public func byteCount() throws(SystemError) -> UInt64 {
    switch self {
    case .local(let file): try file.byteCount()
    case .remote(let remote): remote.byteCount
    }
  }

  /// Bytes that the storage occupies; nil when nobody tells.
  public func allocatedByteCount() throws(SystemError) -> UInt64? {
    switch self {
    case .local(let file): try file.allocatedByteCount()
    case .remote: nil
    }
  }

  /// Seconds and nanoseconds of the last change of the contents; nil when nobody tells.
  public func modificationTime() throws(SystemError) -> (seconds: Int64, nanoseconds: Int64)? {
    switch self {
    case .local(let file): try file.modificationTime()
    case .remote: nil
    }
  }

  // MARK: Locks

  /// Takes the locks of a reader. A remote storage has none: its server decides who may use it.
  public func lockForReading() throws(ImageError) {
    switch self {
    case .local(let file): try file.lockForReading()
    case .remote: return
    }
  }

  /// Takes the locks of the one writer.
  public func lockForWriting() throws(ImageError) {
    switch self {
    case .local(let file): try file.lockForWriting()
    case .remote: return
    }
  }

  /// Gives all locks back.
  public func unlock() {
    switch self {
    case .local(let file): file.unlock()
    case .remote: return
    }
  }

  // MARK: Direct I/O

  /// Turns page-cache bypass on, as `ImageFile.enableDirect` does; nil where there is none.
  public func enableDirect() -> UInt64? {
    switch self {
    case .local(let file): file.enableDirect()
    case .remote: nil
    }
  }

  public func disableDirect() {
    switch self {
    case .local(let file): file.disableDirect()
    case .remote: return
    }
  }

  // MARK: Contents

  /// Reads `byteCount` bytes at `offset`; fewer only where the storage ends.
  public func read(at offset: UInt64, byteCount: Int) throws(SystemError) -> [UInt8] {
    switch self {
    case .local(let file): return try file.read(at: offset, byteCount: byteCount)
    case .remote(let remote):
      let end = offset.addingReportingOverflow(UInt64(byteCount))
      let range = ByteRange(start: offset, end: end.overflow ? .max : end.partialValue)
      guard case .bytes(let bytes) = try remote.finish(.read(range)) else {
        preconditionFailure("a read was answered without bytes")
      }
      return bytes
    }
  }

  /// Writes all of `bytes` at `offset`.
  public func write(_ bytes: [UInt8], at offset: UInt64) throws(SystemError) {
    switch self {
    case .local(let file): try file.write(bytes, at: offset)
    case .remote(let remote):
      _ = try remote.finish(.write(offset: offset, bytes: bytes, isDurable: false))
    }
  }

  public func truncate(to byteCount: UInt64) throws(SystemError) {
    switch self {
    case .local(let file): try file.truncate(to: byteCount)
    case .remote(let remote):
      guard remote.isGrowable else {
        throw SystemError(errno: EINVAL, call: "truncate (a remote storage)")
      }
      _ = try remote.finish(.resize(to: byteCount))
    }
  }

  /// Makes all writes durable.
  public func synchronize() throws(SystemError) {
    switch self {
    case .local(let file): try file.synchronize()
    case .remote(let remote): _ = try remote.finish(.flush)
    }
  }

  // MARK: Space

  /// Makes the range read as zeroes, with as little space as the storage can.
  public func punchHole(_ range: ByteRange) throws(SystemError) {
    switch self {
    case .local(let file): try file.punchHole(range)
    case .remote(let remote):
      guard !range.isEmpty else { return }
      _ = try remote.finish(.zero(range, keepsSpace: false, isFast: false))
    }
  }

  /// Makes the range read as zeroes and keeps, or takes, space for all of it.
  public func zeroAndProvision(_ range: ByteRange) throws(SystemError) {
    switch self {
    case .local(let file): try file.zeroAndProvision(range)
    case .remote(let remote):
      guard !range.isEmpty else { return }
      _ = try remote.finish(.zero(range, keepsSpace: true, isFast: false))
    }
  }

  /// Takes space for all of the range and changes none of its bytes.
  public func provision(_ range: ByteRange) throws(SystemError) {
    switch self {
    case .local(let file): try file.provision(range)
    case .remote(let remote):
      guard remote.isGrowable else { throw SystemError(errno: EOPNOTSUPP, call: "provision") }
      _ = try remote.finish(.provision(range))
    }
  }

  /// Extends a storage that is growable.
  public func grow(from old: UInt64, to new: UInt64) throws(SystemError) {
    switch self {
    case .local(let file): try file.grow(from: old, to: new)
    case .remote(let remote):
      guard remote.isGrowable else { throw SystemError(errno: ENOSPC, call: "grow") }
      _ = try remote.finish(.resize(to: new))
    }
  }
}

extension RemoteStorage {
  /// `run`, with the error of a system call.
  func finish(_ operation: RemoteOperation) throws(SystemError) -> RemoteAnswer {
    do throws(RemoteFault) { return try run(operation) } catch { throw error.systemError }
  }
}

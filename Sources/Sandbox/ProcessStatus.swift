// SPDX-License-Identifier: Apache-2.0
//
// What the kernel says about this thread's credentials. Source: proc(5), /proc/PID/status.

import Glibc

/// The credentials of one thread.
struct ProcessStatus: Hashable, Sendable {
  /// Real, effective, saved and filesystem ids.
  let userIDs: [UInt32]
  let groupIDs: [UInt32]
  /// The union of the inheritable, permitted, effective and ambient sets.
  let heldCapabilities: UInt64
  let hasNoNewPrivileges: Bool

  /// Reads `Name:<tab>values` lines; every field that is asked for must be there.
  init(parsing text: String) throws(SandboxError) {
    var fields: [Substring: [Substring]] = [:]
    for line in text.split(separator: "\n") {
      let parts = line.split(separator: ":", maxSplits: 1)
      guard parts.count == 2 else { continue }
      fields[parts[0]] = parts[1].split(whereSeparator: { $0 == "\t" || $0 == " " })
    }
    userIDs = try ProcessStatus.values("Uid", of: fields, radix: 10, count: 4).map(UInt32.init)
    groupIDs = try ProcessStatus.values("Gid", of: fields, radix: 10, count: 4).map(UInt32.init)
    var held: UInt64 = 0
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
      held |= try ProcessStatus.values(name[...], of: fields, radix: 16, count: 1)[0]
    }
    heldCapabilities = held
    hasNoNewPrivileges =
      try ProcessStatus.values("NoNewPrivs", of: fields, radix: 10, count: 1)[0] == 1
  }

  private static func values(
    _ name: Substring, of fields: [Substring: [Substring]], radix: Int, count: Int
  ) throws(SandboxError) -> [UInt64] {
    let values = fields[name, default: []].compactMap { UInt64($0, radix: radix) }
    guard values.count == count, radix == 16 || values.allSatisfy({ $0 <= UInt32.max }) else {
      throw SandboxError("\(path) has no field \(name) that makes sense")
    }
    return values
  }

  static func current() throws(SandboxError) -> ProcessStatus {
    // SAFETY: the path is a literal.
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      throw SandboxError(call: path, errno: errno, wayOut: "mount /proc")
    }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: byteCountMax)
    // SAFETY: the kernel writes at most `buffer.count` bytes into the array's own storage.
    let count = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe Glibc.read(descriptor, buffer.baseAddress, buffer.count)
    }
    guard count >= 0 else { throw SandboxError(call: path, errno: errno) }
    return try ProcessStatus(parsing: String(decoding: bytes[..<count], as: UTF8.self))
  }

  private static let path = "/proc/thread-self/status"
  /// The file has some 1,500 bytes; the fields of interest are in its first half.
  private static let byteCountMax = 16_384
}

// SPDX-License-Identifier: Apache-2.0
//
// A disk with known contents, served by the daemon under test or by a peer.
// This file creates files and processes.

import Foundation
import TestSupport

/// What the disk is kept in.
enum DiskKind: String, CaseIterable, Sendable {
  case raw
  /// A qcow2 overlay without data of its own over a raw base.
  case qcow2
}

/// One image of 40 MiB: a pattern without zero bytes in the first MiB, a hole behind it.
final class ServedDisk {
  static let byteCount: UInt64 = 40 << 20
  static let patternByteCount = 1 << 20
  static let exportName = "disk"
  static let pattern: [UInt8] = (0..<patternByteCount).map { index in
    let mixed: Int = index * 31 + index / 512
    return UInt8(1 + mixed % 255)
  }

  /// qemu-nbd or nbdkit in place of stratad, to test the tests; see `STRATA_CONFORMANCE_PEER`.
  static let peer = ProcessInfo.processInfo.environment["STRATA_CONFORMANCE_PEER"]

  /// More arguments for stratad, such as `--aio sync`.
  static let extraArguments =
    (ProcessInfo.processInfo.environment["STRATA_CONFORMANCE_ARGUMENTS"] ?? "")
    .split(separator: " ").map { String($0) }

  let kind: DiskKind
  let daemon: Daemon
  private let folder: TemporaryFolder

  /// The file that takes the writes.
  var imagePath: String { folder.path("disk.\(kind.rawValue)") }
  var socketPath: String { daemon.socketPath }

  init(
    _ kind: DiskKind = .raw, byteCount: UInt64 = ServedDisk.byteCount, readOnly: Bool = false,
    _ arguments: String...
  ) throws {
    self.kind = kind
    folder = try TemporaryFolder()
    let image = try ServedDisk.makeImage(kind, byteCount: byteCount, in: folder)
    daemon = try ServedDisk.start(
      image, kind, folder.path("nbd.sock"), readOnly: readOnly, arguments)
  }

  /// Makes the image and returns its path.
  static func makeImage(
    _ kind: DiskKind, byteCount: UInt64, in folder: TemporaryFolder
  ) throws -> String {
    let raw = folder.path("disk.raw")
    let bytes = ServedDisk.pattern.prefix(Int(min(byteCount, UInt64(ServedDisk.patternByteCount))))
    try Data(bytes).write(to: URL(fileURLWithPath: raw))
    guard truncate(raw, off_t(byteCount)) == 0 else {
      throw WireError.system("truncate", errno: errno)
    }
    let image = folder.path("disk.\(kind.rawValue)")
    if kind == .qcow2 {
      try run("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", image)
    }
    return image
  }

  private static func start(
    _ image: String, _ kind: DiskKind, _ socket: String, readOnly: Bool, _ arguments: [String]
  ) throws -> Daemon {
    switch peer {
    case "qemu-nbd":
      return try Daemon(
        requireTool("qemu-nbd"),
        [
          "-f", kind.rawValue, "-k", socket, "-t", "-e", "100",
          "--discard=unmap", "--allocation-depth",
        ] + (readOnly ? ["-r"] : []) + [image], socketPath: socket, readiness: .socketAnswers)
    case "nbdkit":
      return try Daemon(
        requireTool("nbdkit"),
        ["-f", "-U", socket] + (readOnly ? ["-r"] : []) + ["file", image], socketPath: socket,
        readiness: .socketAnswers)
    default:
      return try Daemon(
        daemonPath(),
        [
          image, "--format", kind.rawValue, "--socket", socket, "--export-name", exportName,
        ] + (readOnly ? ["--read-only"] : []) + extraArguments + arguments, socketPath: socket)
    }
  }

  /// A client that has connected and agreed on fixed newstyle.
  func greeted(flags: UInt32 = 3) throws -> WireClient {
    let client = try WireClient(path: socketPath)
    try client.greet(flags: flags)
    return client
  }

  /// A client in the transmission phase.
  func client(
    structured: Bool = true, extended: Bool = false, contexts: [String] = [],
    blockSizes: Bool = true, deadlineSeconds: Double = 20
  ) throws -> WireClient {
    try WireClient.entered(
      path: socketPath, structured: structured, extended: extended, contexts: contexts,
      blockSizes: blockSizes,
      deadlineSeconds: deadlineSeconds)
  }

  /// Whether a new client gets in and reads what it should, within its deadline.
  func serves(deadlineSeconds: Double = 10) throws -> Bool {
    let client = try client(deadlineSeconds: deadlineSeconds)
    let isRight = try client.read(4096, 64).data == ServedDisk.expected(4096, 64)
    try client.disconnect()
    return isRight
  }

  /// The first contents of the disk.
  static func expected(_ offset: Int, _ count: Int) -> [UInt8] {
    (offset..<offset + count).map { $0 < patternByteCount ? pattern[$0] : 0 }
  }

  /// The bytes that the image's file occupies.
  func allocatedByteCount() throws -> Int {
    var status = stat()
    guard stat(imagePath, &status) == 0 else { throw WireError.system("stat", errno: errno) }
    return Int(status.st_blocks) * 512
  }
}

/// Bytes without a zero among them.
func filler(_ count: Int, _ seed: UInt8 = 0x5a) -> [UInt8] {
  (0..<count).map { index in
    let mixed: Int = index * 7 + Int(seed) * 13
    return UInt8(1 + mixed % 255)
  }
}

func zeroes(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

/// The bits of the transmission flags.
enum ExportFlag {
  static let hasFlags: UInt16 = 1 << 0
  static let readOnly: UInt16 = 1 << 1
  static let sendTrim: UInt16 = 1 << 5
  static let sendWriteZeroes: UInt16 = 1 << 6
  static let sendDF: UInt16 = 1 << 7
  static let canMultiConn: UInt16 = 1 << 8
  static let sendCache: UInt16 = 1 << 10
  static let sendFastZero: UInt16 = 1 << 11
  static let payload: UInt16 = 1 << 12
}

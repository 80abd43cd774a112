// SPDX-License-Identifier: Apache-2.0
//
// Files that others change, and files that must not change. Source: DESIGN.md 3.5.

import Foundation
import TestSupport
import Testing

@Suite struct `A base` {
  @Test(arguments: ["native", "sync"])
  func `that is cut fails reads of what is gone, and nothing else`(engine: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay(byteCount: 1 << 20)
    try bench.serve(["--aio", engine])
    let client = try bench.client()
    #expect(truncate(bench.folder.path("base"), 500_000) == 0)
    #expect(try client.read(600_000, 4_096).error == WireErrno.io)
    #expect(try client.read(0, 4_096).data == Array(pattern(1 << 20)[..<4_096]))
    #expect(try client.write(700_000, [1]) == WireErrno.io, "its cluster cannot be filled")
    #expect(try client.write(0, [1]) == 0)
    #expect(try client.read(600_000, 4_096).error == WireErrno.io)
    #expect(try client.flush() == 0)
    try client.disconnect()
    let daemon = try #require(bench.daemon)
    #expect(daemon.isAlive)
    #expect(daemon.stop() == 1, "the base was changed, and that is told")
    #expect(try bench.check() == 0)
  }

  @Test func `that is changed is told of by name when the daemon stops`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    try bench.serve()
    let base = open(bench.folder.path("base"), O_WRONLY)
    #expect(write(base, "x", 1) == 1)
    close(base)
    let daemon = try #require(bench.daemon)
    #expect(daemon.stop() == 1)
    #expect(
      daemon.errorText.contains("\(bench.folder.path("base")): this backing file was changed"))
  }

  @Test func `is the same file, byte for byte and to the nanosecond, after writes and trims`()
    throws
  {
    let bench = try FaultBench()
    try bench.makeOverlay()
    let before = try Untouched(bench.folder.path("base"))
    try bench.serve()
    let client = try bench.client()
    for number in 0..<30 {
      #expect(try client.write(UInt64(number * 30_000), pattern(20_000)) == 0)
    }
    #expect(try client.call(.trim, offset: 0, length: 1 << 20).error == 0)
    #expect(try client.call(.writeZeroes, offset: 100, length: 300_000).error == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try Untouched(bench.folder.path("base")) == before)
    #expect(try bench.check() == 0)
  }
}

@Suite struct `A read-only export` {
  @Test(arguments: ["native", "sync"], ["qcow2", "raw"])
  func `never changes its file`(engine: String, format: String) throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    let image = bench.folder.path(format == "raw" ? "base" : "disk")
    let before = try Untouched(image)
    try bench.serve(["--aio", engine, "--read-only"], image: image, format: format)
    let client = try bench.client()
    #expect(try client.read(0, 1 << 20).data == pattern(1 << 20))
    #expect(try client.write(0, [1]) == WireErrno.notPermitted)
    #expect(try client.call(.trim, offset: 0, length: 65_536).error == WireErrno.notPermitted)
    #expect(
      try client.call(.writeZeroes, offset: 0, length: 65_536).error == WireErrno.notPermitted)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
    #expect(try Untouched(image) == before)
  }

  @Test func `serves a file that nobody may write`() throws {
    let bench = try FaultBench()
    try bench.makeOverlay()
    chmod(bench.folder.path("disk"), 0o444)
    try bench.serve(["--read-only"])
    let client = try bench.client()
    #expect(try client.read(0, 512).data == Array(pattern(1 << 20)[..<512]))
    try client.disconnect()
    #expect(bench.daemon?.stop() == 0)
  }
}

/// What must be the same about a file that nobody has touched.
private struct Untouched: Equatable {
  let bytes: Data
  let seconds: Int
  let nanoseconds: Int
  let inode: UInt64
  let mode: UInt32

  init(_ path: String) throws {
    var status = stat()
    guard stat(path, &status) == 0 else { throw WireError.system("stat", errno: errno) }
    bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    seconds = status.st_mtim.tv_sec
    nanoseconds = status.st_mtim.tv_nsec
    inode = UInt64(status.st_ino)
    mode = status.st_mode
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A disk that grows while its file fails at one call: it has the old size or the new one, and is
// whole. Spec: qcow2.rst, "Header".

import Foundation
import TestSupport
import Testing

private let oldByteCount = 64 << 20
/// Needs a larger L1 table: an entry of one covers 512 MiB.
private let newByteCount = 2 << 30
private let resizeCommand: UInt16 = 8

@Suite(.enabled(if: Need.strace && Need.root, "strace is not installed, or this is not root"))
struct `A resize on a disk that fails` {
  @Test(arguments: ["pwritev2", "fdatasync", "preadv", "ftruncate"], 1...6)
  func `leaves the old disk or the new one`(call: String, when: Int) throws {
    let bench = try FaultBench()
    try bench.makeOverlay(byteCount: oldByteCount, baseByteCount: 1 << 20)
    try bench.serve(
      ["--aio", "sync", "--client-resize"], prefix: bench.failing(call, "EIO", when: "\(when)"))
    let client = try bench.client()
    let request = try client.send(resizeCommand, offset: UInt64(newByteCount))
    let error = try client.wait(request).error
    #expect([0, WireErrno.io].contains(error))
    let written = try client.write(UInt64(oldByteCount - 512), pattern(512))
    #expect([0, WireErrno.io].contains(written))
    let size = try bench.client().size
    #expect(size == UInt64(error == 0 ? newByteCount : oldByteCount))
    try client.disconnect()
    bench.daemon?.stop()
    #expect(try bench.hasOnlyLeaks())
    let info = try run("qemu-img", "info", "--output=json", bench.folder.path("disk"))
    let inFile = info.contains("\"virtual-size\": \(newByteCount)")
    if error == 0 { #expect(inFile, "\(info)") }
    #expect(inFile || info.contains("\"virtual-size\": \(oldByteCount)"), "\(info)")
  }

  /// QEMU grows raw data files without looking behind their disk.
  @Test func `zeroes what a data file holds behind its disk, where no holes can be made`() throws {
    let bench = try FaultBench()
    let data = bench.folder.path("data")
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=\(data),data_file_raw=on",
      bench.folder.path("disk"), "1M")
    try Data(pattern(1 << 20 + 8_192)).write(to: URL(fileURLWithPath: data))
    try bench.serve(
      ["--aio", "sync", "--client-resize", "--allow-data-file", data],
      prefix: bench.failing("fallocate", "EOPNOTSUPP", when: "1+"))
    let client = try bench.client()
    #expect(try client.wait(client.send(resizeCommand, offset: 2 << 20)).error == 0)
    let bytes = try client.read(1 << 20, 1 << 20).data
    #expect(bytes == [UInt8](repeating: 0, count: 1 << 20))
    try client.disconnect()
    bench.daemon?.stop()
    let kept = try Data(contentsOf: URL(fileURLWithPath: data))
    #expect(kept == Data(pattern(1 << 20)) + Data(count: 1 << 20))
    #expect(try bench.check() == 0)
  }
}

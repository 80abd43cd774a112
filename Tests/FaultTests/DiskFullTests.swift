// SPDX-License-Identifier: Apache-2.0
//
// A disk without room: the requests that need room fail with ENOSPC, and nothing else happens.
// The disk is a tmpfs in a mount namespace of the daemon's own, which goes with the daemon.
// Source: mount_namespaces(7), tmpfs(5); reference "reliability.md", "ENOSPC".

import Foundation
import TestSupport
import Testing

private let cluster = FaultBench.clusterByteCount

/// An image on a disk of 8 MiB, of which 2 MiB can be given back.
private final class SmallDisk {
  let bench: FaultBench
  private let image: Int32
  private let process: pid_t

  init(_ arguments: [String] = [], format: String = "qcow2") throws {
    bench = try FaultBench()
    var arguments = arguments
    if format == "qcow2" {
      try bench.makeOverlay()
      arguments += ["--allow-backing", bench.folder.path("base")]
    } else {
      try run("qemu-img", "create", "-q", "-f", "raw", bench.folder.path("disk"), "64M")
    }
    let mount = bench.folder.path("m")
    mkdir(mount, 0o755)
    let script = """
      mount -t tmpfs -o size=8m none "$1" && chmod 755 "$1" \
      && head -c 2097152 /dev/zero >"$1/ballast" && cp --sparse=always "$2" "$1/disk" \
      && shift 2 && exec "$@"
      """
    let daemon = try bench.serve(
      arguments, image: "\(mount)/disk", format: format,
      prefix: ["unshare", "-m", "sh", "-c", script, "sh", mount, bench.folder.path("disk")])
    process = daemon.processID
    // Keeps the tmpfs for a look at the image after the daemon's end.
    image = open("/proc/\(process)/root\(mount)/disk", O_RDONLY | O_CLOEXEC)
    guard image >= 0 else { throw WireError.system("open the image", errno: errno) }
  }

  deinit { close(image) }

  func freeSpace() throws {
    let path = "/proc/\(process)/root\(bench.folder.path("m"))/ballast"
    guard unlink(path) == 0 else { throw WireError.system("unlink", errno: errno) }
  }

  /// Copies the image out of the small disk.
  func copyImage() throws -> String {
    let path = bench.folder.path("copy")
    var bytes = Data()
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    while case let count = pread(image, &buffer, buffer.count, off_t(bytes.count)), count > 0 {
      bytes += buffer[..<count]
    }
    try bytes.write(to: URL(fileURLWithPath: path))
    return path
  }
}

@Suite(.enabled(if: Need.root, "mounting a small disk takes root"))
struct `On a full disk` {
  @Test(arguments: ["native", "sync"])
  func `writes fail with ENOSPC, all else goes on, and writes do when there is room again`(
    engine: String
  ) throws {
    let disk = try SmallDisk(["--aio", engine])
    let client = try disk.bench.client()
    var written = 0
    var error: UInt32 = 0
    while error == 0, written < 200 {
      error = try client.write(UInt64(written * cluster), pattern(cluster, seed: written))
      if error == 0 { written += 1 }
    }
    #expect(error == WireErrno.noSpace)
    #expect(written > 50, "\(written) clusters fit")
    #expect(
      try client.write(UInt64(written * cluster), pattern(cluster)) == WireErrno.noSpace,
      "the connection lives, and the disk is still full")
    #expect(try client.write(0, pattern(cluster, seed: 0)) == 0, "what has room can be overwritten")
    for number in stride(from: 0, to: written, by: 7) {
      let read = try client.read(UInt64(number * cluster), cluster)
      #expect(read.data == pattern(cluster, seed: number))
    }
    try disk.freeSpace()
    for number in written..<written + 10 {
      #expect(try client.write(UInt64(number * cluster), pattern(cluster, seed: number)) == 0)
    }
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(disk.bench.daemon?.stop() == 0)
    #expect(try disk.bench.check(disk.copyImage()) == 0)
  }

  @Test func `a trim makes room for other clusters`() throws {
    let disk = try SmallDisk()
    let client = try disk.bench.client()
    var written = 0
    while written < 200, try client.write(UInt64(written * cluster), pattern(cluster)) == 0 {
      written += 1
    }
    #expect(written > 20)
    #expect(try client.call(.trim, offset: 0, length: UInt32(20 * cluster)).error == 0)
    #expect(try client.flush() == 0)
    // The space comes back behind the flush, a moment later.
    var again = 0
    let deadline = Deadline(seconds: 5)
    while again < 10, deadline.secondsLeft > 0 {
      let place = UInt64((300 + again) * cluster)
      if try client.write(place, pattern(cluster, seed: 9)) == 0 {
        again += 1
      } else {
        usleep(1_000)
      }
    }
    #expect(again == 10)
    try client.disconnect()
    #expect(disk.bench.daemon?.stop() == 0)
    #expect(try disk.bench.check(disk.copyImage()) == 0)
  }

  @Test(arguments: ["native", "sync"])
  func `a raw image behaves the same`(engine: String) throws {
    let disk = try SmallDisk(["--aio", engine], format: "raw")
    let client = try disk.bench.client()
    var written = 0
    var error: UInt32 = 0
    while error == 0, written < 200 {
      error = try client.write(UInt64(written * cluster), pattern(cluster, seed: written))
      if error == 0 { written += 1 }
    }
    #expect(error == WireErrno.noSpace)
    #expect(try client.read(0, cluster).data == pattern(cluster, seed: 0))
    try disk.freeSpace()
    #expect(try client.write(UInt64(written * cluster), pattern(cluster)) == 0)
    #expect(try client.flush() == 0)
    try client.disconnect()
    #expect(disk.bench.daemon?.stop() == 0)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Past faults of programs that read qcow2 images, one test for each, on images that somebody who
// means harm could give us. Source: reference/security.md 2.3; the tests are named after its rows.
//
// Every verb runs under the limits that OpenStack chose for `qemu-img info`: 1 GiB of addresses and
// 2 s of processor time.

import Foundation
import Testing

/// A change of an image file: a big-endian number of so many bytes at an offset.
private struct Poke {
  let offset: Int
  let byteCount: Int
  let value: UInt64

  init(_ offset: Int, _ byteCount: Int, _ value: UInt64) {
    self.offset = offset
    self.byteCount = byteCount
    self.value = value
  }
}

extension Workbench {
  /// Code that is not optimised takes ten times as long.
  fileprivate static let limits: [String] = {
    #if DEBUG
      ["prlimit", "--as=1073741824", "--cpu=20"]
    #else
      ["prlimit", "--as=1073741824", "--cpu=2"]
    #endif
  }()

  fileprivate func poke(_ name: String, _ pokes: [Poke]) throws {
    var bytes = try bytes(of: name)
    for poke in pokes {
      for index in 0..<poke.byteCount {
        bytes[poke.offset + index] = UInt8(
          truncatingIfNeeded: poke.value >> UInt64(8 * (poke.byteCount - 1 - index)))
      }
    }
    try write(bytes, to: name)
  }

  /// Runs our command under the limits; it may refuse, but not die.
  @discardableResult
  fileprivate func limited(_ line: String) throws -> CommandResult {
    let result = try run(
      Self.limits + [try Self.strataPath] + line.split(separator: " ").map(String.init))
    #expect(result.exitCode < 128, "\(line): \(result)")
    #expect(!result.errors.contains("Fatal error"), "\(line): \(result.errors)")
    return result
  }

  /// Looks at an image with every verb, and serves it.
  fileprivate func survive(_ name: String) throws {
    let before = try bytes(of: name)
    for verb in ["info", "check", "map", "map --output=json"] { try limited("\(verb) \(name)") }
    // Who only looks changes nothing.
    #expect(try bytes(of: name) == before)
    for verb in [
      "snapshot list", "snapshot create copy new", "snapshot apply copy 1",
      "snapshot delete copy 1", "bitmap add copy b", "check -r all copy",
      "convert -f qcow2 -O raw -l 1 copy target", "convert -f qcow2 -O qcow2 copy target",
    ] {
      try write(before, to: "copy")
      try limited(verb.hasSuffix("list") ? "\(verb) copy" : verb)
    }
    try serveAndUse(name)
  }

  /// Serves an image under the limits, reads and writes it, and stops the server.
  fileprivate func serveAndUse(_ name: String) throws {
    let socket = path("socket-\(UUID().uuidString.prefix(8))")
    let stratad = String(try Self.strataPath.dropLast("strata".count)) + "stratad"
    let server = try RunningTool(
      Self.limits + [stratad, "--format", "qcow2", "--socket", socket, path(name)],
      folder: folder, outputPath: path("served"), errorPath: path("served-errors"))
    var hasEnded = false
    for _ in 0..<1000 where !hasEnded && !FileManager.default.fileExists(atPath: socket) {
      usleep(10_000)
      var information = siginfo_t()
      waitid(P_PID, id_t(server.processID), &information, WEXITED | WNOHANG | WNOWAIT)
      hasEnded = information.si_signo == SIGCHLD
    }
    if !hasEnded {
      _ = try run([
        "qemu-io", "-f", "raw", "-c", "read 0 64k", "-c", "write -P 5 0 64k", "-c", "read 1M 64k",
        "-c", "write 3M 64k", "-c", "discard 0 64k", "-c", "flush",
        "nbd+unix:///?socket=\(socket)",
      ])
      kill(server.processID, SIGTERM)
    }
    let code = server.waitForEnd()
    let errors = try String(contentsOfFile: path("served-errors"), encoding: .utf8)
    #expect(code < 128, "\(name): \(errors)")
    #expect(!errors.contains("Fatal error"), "\(errors)")
    for file in ["served", "served-errors"] {
      try FileManager.default.removeItem(atPath: path(file))
    }
  }

  /// The files that a verb opens, besides libraries and what the system gives to every program.
  fileprivate func openedFiles(_ line: String) throws -> [String] {
    _ = try run(
      ["strace", "-f", "-e", "trace=openat,open", "-o", "opened", try Self.strataPath]
        + line.split(separator: " ").map(String.init))
    let trace = try String(contentsOfFile: path("opened"), encoding: .utf8)
    let ours = ["/lib/", "/usr/", "/etc/", "/proc/", "/sys/", "/dev/"]
    let folder = try Self.strataPath.dropLast("strata".count)
    var names: [String] = []
    for call in trace.split(separator: "\n") {
      let parts = call.split(separator: "\"")
      guard parts.count > 1 else { continue }
      // The user's own file is opened by its whole name.
      let name = parts[1].replacingOccurrences(of: self.folder + "/", with: "")
      let isOurs =
        ours.contains(where: name.hasPrefix) || name.hasPrefix(folder) || name.contains(".so")
      if isOurs && name != "/etc/passwd" && name != "/dev/zero" { continue }
      // A look at the first bytes, which tell the format, is an opening of its own.
      if !names.contains(name) { names.append(name) }
    }
    return names
  }

  fileprivate func makeVictim(_ options: String = "") throws {
    try make([
      "qemu-img create -q -f qcow2 \(options) image.qcow2 8M",
      "qemu-io -c write_-P_1_0_128k image.qcow2",
    ])
    try prepare("cp image.qcow2 before.qcow2")
  }

  /// Tries each set of changes on the image as it was.
  fileprivate func tryAll(_ changes: [[Poke]]) throws {
    for pokes in changes {
      try prepare("cp before.qcow2 image.qcow2")
      try poke("image.qcow2", pokes)
      try survive("image.qcow2")
    }
  }
}

@Suite struct `An image made to harm` {
  @Test func `CVE-2008-2004 and CVE-2026-27211: a raw disk stays raw, whatever a guest writes`()
    throws
  {
    let bench = try Workbench()
    try bench.prepare("truncate -s 1M secret")
    try bench.prepare("qemu-img create -q -f qcow2 -b secret -F raw inner.qcow2 1M")
    try bench.prepare("cp inner.qcow2 disk.raw")
    #expect(try bench.limited("info -f raw disk.raw").output.contains("file format: raw"))
    #expect(try bench.openedFiles("map -f raw disk.raw") == ["disk.raw"])
  }

  @Test func `CVE-2010-2237: the format of a backing file is not guessed`() throws {
    let bench = try Workbench()
    try bench.prepare("truncate -s 1M base", "qemu-img create -q -f qcow2 -b base -F raw o.qcow2")
    let bytes = try bench.bytes(of: "o.qcow2")
    let place = try #require(bytes.firstRange(of: [0xe2, 0x79, 0x2a, 0xca]))
    try bench.poke("o.qcow2", [Poke(place.lowerBound, 4, 0x1234_5678)])
    #expect(try bench.limited("map o.qcow2").exitCode == 1)
    #expect(try bench.openedFiles("map o.qcow2") == ["o.qcow2"])
    #expect(try bench.openedFiles("info o.qcow2") == ["o.qcow2"])
  }

  @Test(arguments: ["/dev/zero", "fifo", "../", "/proc/self/fd/0"])
  func `CVE-2011-3147: what is no file is no backing file`(_ name: String) throws {
    let bench = try Workbench()
    try bench.prepare("mkfifo fifo")
    try bench.prepare("qemu-img create -q -f qcow2 -u -b \(name) -F raw o.qcow2 1M")
    #expect(try bench.limited("map o.qcow2").exitCode == 1)
    #expect(try bench.openedFiles("info o.qcow2") == ["o.qcow2"])
  }

  @Test func `CVE-2013-2096: an image that claims a petabyte takes no more than others`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o cluster_size=2M image.qcow2 1P")
    #expect(try bench.limited("info image.qcow2").exitCode == 0)
    #expect(try bench.limited("check image.qcow2").exitCode == 0)
    #expect(try bench.limited("map image.qcow2").exitCode == 0)
    try bench.serveAndUse("image.qcow2")
  }

  @Test func `CVE-2014-0142 and CVE-2014-0148: cluster_bits outside of 9 to 21`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    try bench.tryAll([0, 8, 22, 40, 63, 255, 0xffff_ffff].map { [Poke(20, 4, $0)] })
  }

  @Test func `CVE-2014-0143: table sizes that overflow`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    var changes = [0x7fff_ffff, 0xffff_ffff, 0x400_0000].map { [Poke(36, 4, $0)] }
    changes += [0xffff_ffff, 0x7fff_ffff, 0x81, 0].map { [Poke(56, 4, $0)] }
    changes += [7, 8, 63, 0xffff_ffff].map { [Poke(96, 4, $0)] }
    changes += [1 << 63, .max, (1 << 63) - 1].map { [Poke(24, 8, $0)] }
    try bench.tryAll(changes)
  }

  @Test func `CVE-2014-0144: header and extension lengths, and tables in wrong places`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    var changes = [0, 103, 105, 0x7fff_ffff, 0xffff_ffff].map { [Poke(100, 4, $0)] }
    // The first extension's length.
    changes += [0x7fff_ffff, 0xffff_ffff, 0xfffff].map { [Poke(116, 4, $0)] }
    for value: UInt64 in [1, 512, 1 << 56, 1 << 62, .max, .max << 16] {
      changes += [[Poke(40, 8, value)], [Poke(48, 8, value)]]
      changes.append([Poke(60, 4, 1), Poke(64, 8, value)])
    }
    try bench.tryAll(changes)
  }

  @Test func `CVE-2014-0145: a snapshot with a huge or unaligned L1 table`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    try bench.prepare("qemu-img snapshot -c one image.qcow2", "cp image.qcow2 before.qcow2")
    let table = try bench.word("image.qcow2", at: 64)
    try bench.tryAll([
      [Poke(table + 8, 4, 0x1000_0000)], [Poke(table + 8, 4, 0xffff_ffff)],
      [Poke(table, 8, 1)], [Poke(table, 8, .max << 16)], [Poke(table, 8, 1 << 50)],
      [Poke(table + 36, 4, 0xffff_ffff)], [Poke(table + 12, 4, 0xffff_ffff)],
    ])
  }

  @Test func `CVE-2014-0146: a number of snapshots that contradicts their place`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    try bench.tryAll([
      [Poke(60, 4, 0xffff_ffff)], [Poke(60, 4, 65_537)], [Poke(60, 4, 65_536)],
      [Poke(60, 4, 1)], [Poke(64, 8, 0x30000)], [Poke(60, 4, 65_536), Poke(64, 8, 0x30000)],
    ])
  }

  @Test func `CVE-2014-0147: an L2 entry with a huge host offset`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    let table = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 40))
    let place = table & 0xff_ffff_ffff
    try bench.tryAll(
      [0xbfff_ffff_ffff_0000, 0x80ff_ffff_ffff_0000, 0x80ff_ffff_ffff_0001, 0xffff_ffff_ffff_ffff]
        .map { [Poke(place, 8, $0)] })
    #expect(try bench.limited("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
  }

  @Test func `CVE-2014-0222 and CVE-2014-0223: version 1 is refused`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    try bench.tryAll([0, 1, 4, 0xffff_ffff].map { [Poke(4, 4, $0)] })
    #expect(try bench.limited("info -f qcow2 image.qcow2").exitCode != 0)
  }

  @Test func `CVE-2015-1851 and CVE-2024-32498: a data file is not opened to look at an image`()
    throws
  {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o data_file=data image.qcow2 1M")
    let bytes = try bench.bytes(of: "image.qcow2")
    let place = try #require(bytes.firstRange(of: [0x44, 0x41, 0x54, 0x41])).lowerBound
    // /etc/passwd in the place of a name of 4 bytes: the next extension begins 16 bytes later.
    try bench.poke(
      "image.qcow2",
      [
        Poke(place + 4, 4, 11), Poke(place + 8, 8, 0x2f65_7463_2f70_6173),
        Poke(place + 16, 4, 0x7377_6400),
      ])
    for verb in ["info", "check"] {
      #expect(try bench.openedFiles("\(verb) image.qcow2") == ["image.qcow2"])
    }
  }

  @Test func `CVE-2015-5162 and CVE-2018-10908: tables of petabytes are looked at under limits`()
    throws
  {
    let bench = try Workbench()
    // 16 MiB of L1 table that names one table again and again, and that table one cluster.
    try bench.prepare("qemu-img create -q -f qcow2 image.qcow2 1P")
    let l1 = try bench.word("image.qcow2", at: 40)
    var bytes = try bench.bytes(of: "image.qcow2")
    let table = (bytes.count + 0xffff) / 0x1_0000 * 0x1_0000
    bytes += [UInt8](repeating: 0, count: table + 0x2_0000 - bytes.count)
    func put(_ value: Int, _ offset: Int) {
      for index in 0..<8 {
        bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (56 - 8 * index))
      }
    }
    for index in 0..<1000 { put(table, l1 + 8 * index) }
    for index in 0..<8192 { put(table + 0x1_0000, table + 8 * index) }
    try bench.write(bytes, to: "image.qcow2")
    #expect(try bench.limited("info image.qcow2").exitCode == 0)
    try bench.limited("check -q image.qcow2")
    try bench.limited("map -l 1G image.qcow2")
    try bench.serveAndUse("image.qcow2")
  }

  @Test func `CVE-2022-47951 and CVE-2026-2243: compressed clusters behind the end`() throws {
    let bench = try Workbench()
    try bench.make([
      "qemu-img create -q -f qcow2 source 8M", "qemu-io -c write_-P_1_0_128k source",
      "qemu-img convert -c -O qcow2 source image.qcow2",
    ])
    try bench.prepare("cp image.qcow2 before.qcow2")
    let table =
      try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 40)) & 0xff_ffff_ffff
    let end = UInt64(try bench.bytes(of: "image.qcow2").count)
    try bench.tryAll(
      [end, end - 1, 0, 1, 0x10000, end - 512, 1 << 52].flatMap { offset in
        [0, 0x3f].map { sectors in [Poke(table, 8, 1 << 62 | sectors << 54 | offset)] }
      })
  }

  @Test(arguments: [
    "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "nbd://127.0.0.1:1/x", "fd:0",
    "file:/etc/passwd", "fat:/etc", "https://127.0.0.1:1/x",
  ])
  func `CVE-2024-4467: info opens one file, whatever the names in it say`(_ name: String) throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -u -b \(name) -F raw o.qcow2 1M")
    let result = try bench.limited("info o.qcow2")
    #expect(result.exitCode == 0)
    #expect(result.output.contains(name))
    #expect(try bench.openedFiles("info o.qcow2") == ["o.qcow2"])
    #expect(try bench.openedFiles("map o.qcow2") == ["o.qcow2"])
    #expect(try bench.limited("map o.qcow2").exitCode != 0)
  }

  @Test func `CH 6472: chains that loop or never end`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f qcow2 -u -b a.qcow2 -F qcow2 new.qcow2 1M", "mv new.qcow2 a.qcow2",
      "qemu-img create -q -f qcow2 -u -b c.qcow2 -F qcow2 b.qcow2 1M",
      "qemu-img create -q -f qcow2 -u -b b.qcow2 -F qcow2 c.qcow2 1M")
    for name in ["a.qcow2", "b.qcow2"] {
      #expect(try bench.limited("map \(name)").errors.contains("loops"))
      #expect(try bench.limited("info --backing-chain \(name)").exitCode == 1)
    }
    let bytes = try bench.bytes(of: "a.qcow2")
    let place = try #require(bytes.lastRange(of: Array("a.qcow2".utf8))).lowerBound
    for index in 0..<1100 {
      var copy = bytes
      copy.replaceSubrange(place..<place + 7, with: Array(String(format: "%07d", index + 1).utf8))
      try bench.write(copy, to: String(format: "%07d", index))
    }
    #expect(try bench.limited("map 0000000").exitCode == 1)
    try bench.serveAndUse("0000000")
  }

  @Test func `CH 1792 and its like: entries beyond the refcounts, names outside of the header`()
    throws
  {
    let bench = try Workbench()
    try bench.makeVictim()
    let l1 = try bench.word("image.qcow2", at: 40)
    let refcounts = try bench.word("image.qcow2", at: 48)
    var changes: [[Poke]] = []
    for value: UInt64 in [1 << 63 | 1 << 55, 1, .max, 0x10000, 0x8000_0000_0000_0200] {
      changes += [[Poke(l1, 8, value)], [Poke(refcounts, 8, value)]]
    }
    changes += [[Poke(8, 8, 1 << 32), Poke(16, 4, 8)], [Poke(8, 8, 0xfffe), Poke(16, 4, 1000)]]
    changes += [[Poke(8, 8, 200), Poke(16, 4, 0xffff_ffff)], [Poke(8, 8, 4), Poke(16, 4, 8)]]
    try bench.tryAll(changes)
  }

  @Test func `LP 1728615: counts that call the header free`() throws {
    let bench = try Workbench()
    try bench.makeVictim()
    let block = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 48))
    try bench.tryAll([
      [Poke(block, 2, 0)], [Poke(block, 8, 0), Poke(block + 8, 8, 0)],
      [Poke(try bench.word("image.qcow2", at: 48), 8, 0)],
    ])
    #expect(try bench.bytes(of: "image.qcow2").starts(with: [0x51, 0x46, 0x49, 0xfb]))
  }

  @Test(arguments: ["7.99E999", "-1", "1e30", "", "٣", "9E", "0x", "1.5.2", "k"])
  func `qemu-project 1629: sizes that are no numbers`(_ size: String) throws {
    let bench = try Workbench()
    let result = try bench.run(
      Workbench.limits + [try Workbench.strataPath, "create", "-f", "qcow2", "--", "x", size])
    #expect(result.exitCode != 0 && result.exitCode < 128, "\(result)")
    #expect(!bench.exists("x"))
  }
}

@Suite struct `Bugs of other writers` {
  // reference/users.md 1.3, row 11 (cloud-hypervisor 29720f07a).
  @Test func `11: refcounts are rebuilt for the file, not for the disk that it claims`() throws {
    let bench = try Workbench()
    try bench.make([
      "qemu-img create -q -f qcow2 -o cluster_size=2M image.qcow2 1P",
      "qemu-io -c write_-P_1_0_64k image.qcow2",
    ])
    try bench.poke("image.qcow2", [Poke(try bench.word("image.qcow2", at: 48), 8, 0)])
    let before = try bench.bytes(of: "image.qcow2").count
    #expect(try bench.limited("check -r all image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
    // One block and one table more.
    #expect(try bench.bytes(of: "image.qcow2").count <= before + (6 << 20))
  }
}

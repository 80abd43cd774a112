// SPDX-License-Identifier: Apache-2.0
//
// Bitmaps that the image keeps: in which order they reach the file, and what is left of them after
// a crash. Source: decision 0024; the judge of images is QEMU.

import Bitmaps
import BlockTypes
import Foundation
import ImageTools
import LinuxIO
import NBDProtocol
import TestSupport
import Testing

@testable import DataPlane

private let mebibyte: UInt64 = 1 << 20
private let diskByteCount = 64 * mebibyte

extension ImageBench {
  /// A disk of 64 MiB with the bitmap "b", made by QEMU, and what else `commands` say.
  fileprivate convenience init(
    _ commands: [[String]] = [["bitmap", "--add", "-g", "65536"]], cluster: Int = 65_536,
    engine: ExportPlan.Engine = .sync, durability: BitmapDurability = .region
  ) throws {
    let folder = try TemporaryFolder()
    let path = folder.path("disk")
    try run(
      "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=\(cluster)", path, "64M")
    for command in commands {
      try runTool("qemu-img", command + [path, "b"])
    }
    try self.init(folder, "disk", engine: engine, durability: durability)
  }

  /// Does `actions` as control would order them.
  fileprivate func order(_ actions: BitmapAction...) throws {
    guard image.changesStore(actions) else {
      try image.changeBitmaps(actions) { _ in nil }
      return
    }
    guard image.startBitmapWork(.change(actions)) else { throw BenchError("work goes on") }
    try until { !self.image.store.work.isRunning }
    if let changeFault { throw changeFault }
  }

  /// Ends as a clean stop does.
  fileprivate func close() throws -> String? {
    try settle()
    let trouble = image.closeBitmaps()
    try image.trimFile()
    return trouble
  }

  /// The dirty runs of a bitmap in a copy of the file as it is now: after a crash.
  fileprivate func crashed(_ name: String = "b") throws -> [ByteRange] {
    let copy = try check("crashed")
    #expect(copy.hasOnlyLeaks, Comment(rawValue: copy.text))
    return try KeptBitmap(named: name, of: folder.plan("crashed")).bits.runs
  }

  fileprivate var markRoundCount: UInt64 { image.counters.markRoundCount }
  fileprivate func begin(_ actions: [BitmapAction]) -> Bool {
    image.startBitmapWork(.change(actions))
  }
  fileprivate var names: [String] { image.bitmaps.all.map(\.name) }
  fileprivate var areRecovered: [Bool] { image.bitmaps.all.map(\.isRecovered) }
  fileprivate var areInUse: [Bool] { image.store.bitmaps.map(\.entry.isInUse) }
  fileprivate var isWorking: Bool { image.store.work.isRunning }
}

extension DirtyBitmap {
  fileprivate var runs: [ByteRange] {
    var runs: [ByteRange] = []
    while let run = nextDirtyRun(from: runs.last?.end ?? 0) { runs.append(run) }
    return runs
  }
}

extension TemporaryFolder {
  /// A look at an image of the folder.
  fileprivate func plan(_ name: String) throws -> ExportPlan {
    var options = OpenChain.Options(takesLocks: false, followsBackingFiles: false)
    options.keepsBitmaps = true
    let layers = try OpenChain.open(
      path: path(name), format: .qcow2, access: .readOnly, options: options)
    return ExportPlan(
      name: "", description: "", isReadOnly: true,
      layers: layers.map { layer in
        LayerPlan(
          storage: layer.storage, format: layer.header.map { .qcow2($0) } ?? .raw,
          diskByteCount: layer.exactDiskByteCount)
      }, engine: .sync, limits: RequestLimits(), minimumBlockByteCount: 1,
      metadataCacheByteCount: 1 << 20, spinNanosecondsMax: 0)
  }

  /// The bitmaps of an image and their flags, as QEMU tells them.
  fileprivate func flags(_ name: String = "disk") throws -> [String: [String]] {
    struct Info: Decodable {
      struct Specific: Decodable { let data: Details }
      struct Details: Decodable { let bitmaps: [Bitmap]? }
      struct Bitmap: Decodable {
        let name: String
        let flags: [String]
      }
      let specific: Specific
      enum CodingKeys: String, CodingKey { case specific = "format-specific" }
    }
    let text = try run("qemu-img", "info", "-U", "--output=json", path(name))
    let info = try JSONDecoder().decode(Info.self, from: Data(text.utf8))
    let bitmaps = info.specific.data.bitmaps ?? []
    return Dictionary(uniqueKeysWithValues: bitmaps.map { ($0.name, $0.flags) })
  }
}

private func range(_ start: UInt64, _ byteCount: UInt64) -> ByteRange {
  ByteRange(start: start, end: start + byteCount)
}

@Suite struct `A bitmap that the image keeps` {
  @Test(arguments: [512, 4_096, 65_536, 2_097_152])
  func `is exact after a clean stop, for us and for QEMU`(cluster: Int) throws {
    let bench = try ImageBench(cluster: cluster)
    try bench.write([1, 2, 3], 3 * mebibyte)
    try bench.call(.writeZeroes, 40 * mebibyte, 100)
    try bench.call(.trim, 50 * mebibyte, mebibyte)
    #expect(try bench.close() == nil)
    #expect(try bench.check().isClean)
    #expect(try bench.folder.flags() == ["b": ["auto"]])
    let kept = try KeptBitmap(named: "b", of: bench.folder.plan("disk"))
    #expect(
      kept.bits.runs == [
        range(3 * mebibyte, 65_536), range(40 * mebibyte, 65_536), range(50 * mebibyte, mebibyte),
      ])
    #expect(!kept.isRecovered)
  }

  @Test func `is left alone when nothing is written`() throws {
    let bench = try ImageBench()
    let before = try run("sha256sum", bench.path)
    _ = try bench.read(0, 4_096)
    #expect(try bench.close() == nil)
    #expect(try run("sha256sum", bench.path) == before)
  }

  /// At every step of a row of changes the file is what a crash would leave.
  @Test(arguments: [512, 65_536])
  func `covers all that has changed, whenever the process ends`(cluster: Int) throws {
    let bench = try ImageBench(cluster: cluster)
    let changes: [(Command, UInt64, UInt64)] = [
      (.write, 5 * mebibyte, 4_096), (.write, 5 * mebibyte + 300_000, 4_096),
      (.writeZeroes, 20 * mebibyte, 70_000), (.write, 63 * mebibyte, 1),
      (.trim, 5 * mebibyte, 4_096),
    ]
    var steps = 0
    for (command, offset, length) in changes {
      let payload = [UInt8](repeating: 7, count: command == .write ? Int(length) : 0)
      let slot = try bench.start(command, offset, length, payload: payload)
      while bench.outcome(slot) == nil {
        try requireCovering(bench)
        if !bench.step() { usleep(100) }
        steps += 1
        #expect(steps < 2_000)
      }
      try bench.flush()
      try requireCovering(bench)
    }
    #expect(try bench.close() == nil)
    try requireCovering(bench)
  }

  /// The file as it is now: what differs from an empty disk is dirty, or QEMU and we call the
  /// bitmap unusable.
  private func requireCovering(_ bench: ImageBench) throws {
    let dirty = try bench.crashed()
    let text = try run("qemu-img", "map", "--output=json", bench.folder.path("crashed"))
    struct Extent: Decodable {
      let start: UInt64
      let length: UInt64
      let data: Bool
    }
    for extent in try JSONDecoder().decode([Extent].self, from: Data(text.utf8)) where extent.data {
      // Only whole clusters are seen here; what was written in them is in the middle.
      #expect(dirty.contains { $0.overlaps(range(extent.start, extent.length)) })
    }
  }

  @Test func `has a region marked before a write to it ends, and pays for it once`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    #expect(bench.markRoundCount == 1)
    #expect(try bench.crashed() == [range(0, 16 * mebibyte)])
    for offset in stride(from: 0, to: 16 * mebibyte, by: 65_536) { try bench.write([2], offset) }
    try bench.call(.trim, 0, 16 * mebibyte)
    #expect(bench.markRoundCount == 1)
    try bench.write([1], 16 * mebibyte)
    #expect(bench.markRoundCount == 2)
    #expect(try bench.crashed() == [range(0, 32 * mebibyte)])
  }

  @Test func `takes the marks of many requests together`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    let slots = try (0..<64).map { try bench.start(write: [1], UInt64($0) * mebibyte) }
    for slot in slots { #expect(try bench.finish(slot) == .none) }
    #expect(bench.markRoundCount == 2)
  }

  @Test func `is in use for QEMU while it is complete for us`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    #expect(try bench.folder.flags() == ["b": ["in-use", "auto"]])
    _ = try bench.crashed()
    #expect(try KeptBitmap(named: "b", of: bench.folder.plan("crashed")).isRecovered)
  }

  @Test func `does not survive a crash beside a snapshot, which QEMU's repair would forget`() throws
  {
    let bench = try ImageBench()
    try bench.write([1], 0)
    try bench.snapshot("one")
    try bench.write([1], 20 * mebibyte)
    #expect(try bench.folder.flags() == ["b": ["in-use", "auto"]])
    _ = try bench.check("crashed")
    _ = try runTool("qemu-img", ["check", "-q", "-r", "all", bench.folder.path("crashed")])
    #expect(try run("qemu-img", "snapshot", "-l", bench.folder.path("crashed")).contains("one"))
    #expect(throws: (any Error).self) {
      try KeptBitmap(named: "b", of: bench.folder.plan("crashed"))
    }
  }

  @Test func `that is complete in use keeps its image from getting a snapshot`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    _ = try bench.check("crashed")
    #expect(throws: ImageFault.self) {
      try Snapshots.create(path: bench.folder.path("crashed"), format: .qcow2, name: "one")
    }
  }

  @Test func `is no more believed after a crash and a foreign writer`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    _ = try bench.crashed()
    try run("qemu-io", "-f", "qcow2", "-c", "write 30M 1", bench.folder.path("crashed"))
    let error = #expect(throws: BitmapFault.self) {
      try KeptBitmap(named: "b", of: bench.folder.plan("crashed"))
    }
    #expect(error?.reason.contains("in use") == true)
  }

  @Test func `that was recovered is valid after the next clean stop, though wider`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    _ = try bench.crashed()
    let second = try ImageBench(bench.folder, "crashed")
    #expect(second.areRecovered == [true])
    #expect(try second.close() == nil)
    #expect(try bench.folder.flags("crashed") == ["b": ["auto"]])
    #expect(
      try KeptBitmap(named: "b", of: bench.folder.plan("crashed")).bits.runs
        == [range(0, 16 * mebibyte)])
  }

  @Test func `costs no write where it is not to survive a crash, and does not`() throws {
    let bench = try ImageBench(durability: .none)
    try bench.write([1], 0)
    #expect(bench.markRoundCount == 0)
    #expect(throws: BitmapFault.self) { try bench.crashed() }
    #expect(try bench.close() == nil)
    #expect(
      try KeptBitmap(named: "b", of: bench.folder.plan("disk")).bits.runs == [range(0, 65_536)])
  }

  @Test func `follows the disk when it grows`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    let newByteCount = UInt64(40) << 30  // more bits than a cluster has
    #expect(try bench.call(.resize, newByteCount) == .none)
    try bench.write([1], newByteCount - 1)
    let wide = try bench.crashed()
    #expect(wide == [range(0, 16 * mebibyte), range(newByteCount - 16 * mebibyte, 16 * mebibyte)])
    #expect(try bench.close() == nil)
    #expect(try bench.check().isClean)
    #expect(try bench.folder.flags() == ["b": ["auto"]])
    #expect(
      try KeptBitmap(named: "b", of: bench.folder.plan("disk")).bits.runs
        == [range(0, 65_536), range(newByteCount - 65_536, 65_536)])
  }

  /// Its table needs 66 clusters, and a refcount block counts 64.
  @Test func `follows it with a table that no refcount block counts alone`() throws {
    let folder = try TemporaryFolder()
    try folder.qemu("qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 @disk 64M")
    try folder.qemu("qemu-img bitmap --add -g 512 @disk b")
    let bench = try ImageBench(folder, "disk")
    let newByteCount = 8_448 * mebibyte
    #expect(try bench.call(.resize, newByteCount) == .none)
    try bench.write([1], newByteCount - 1)
    #expect(try bench.crashed() == [range(newByteCount - 16 * mebibyte, 16 * mebibyte)])
    #expect(try bench.close() == nil)
    #expect(try bench.check().isClean)
    #expect(
      try KeptBitmap(named: "b", of: folder.plan("disk")).bits.runs
        == [range(newByteCount - 512, 512)])
  }
}

@Suite struct `A disk that grows within a region` {
  /// The region was marked as far as the disk went. Found by simulation.
  @Test func `marks what is behind its old end`() throws {
    let bench = try ImageBench()
    #expect(try bench.call(.resize, 65 * mebibyte) == .none)
    try bench.write([1], 64 * mebibyte)
    #expect(try bench.call(.resize, 66 * mebibyte) == .none)
    try bench.write([1], 66 * mebibyte - 1)
    #expect(try bench.crashed() == [range(64 * mebibyte, 2 * mebibyte)])
  }

  /// The zeroing of new space is a change that no bitmap knows. It ended the daemon; found by
  /// simulation.
  @Test func `may get a bitmap meanwhile`() throws {
    for number in 0..<12 {
      let bench = try ImageBench()
      try bench.write([1], 0)
      #expect(bench.begin([.clear(name: "b")]))
      for _ in 0..<number { bench.step() }
      let resize = try bench.start(.resize, 64 * mebibyte + 65_536 + 512, 0)
      try bench.until { !bench.isWorking }
      #expect(try bench.finish(resize) == .none)
      #expect(bench.changeFault == nil)
    }
  }
}

@Suite struct `A change of bitmaps that the image keeps` {
  private func persistent(_ name: String, _ granularity: UInt64 = 65_536) -> BitmapAction {
    .add(name: name, granularityByteCount: granularity, isEnabled: true, isPersistent: true)
  }

  @Test func `is in the file when it is answered`() throws {
    let bench = try ImageBench([])
    try bench.order(persistent("one"))
    #expect(try bench.crashed("one") == [])
    try bench.write([1], 0)
    #expect(try bench.crashed("one") == [range(0, 16 * mebibyte)])
    try bench.order(persistent("two", 512), .disable(name: "one"))
    #expect(try bench.crashed("two") == [])
    try bench.write([1], 32 * mebibyte)
    #expect(try bench.crashed("one") == [range(0, 65_536)])
    #expect(try bench.crashed("two") == [range(32 * mebibyte, 16 * mebibyte)])
    try bench.order(.merge(sources: ["two"], target: "one"))
    #expect(try bench.crashed("one") == [range(0, 65_536), range(32 * mebibyte, 65_536)])
    try bench.order(.remove(name: "two"))
    #expect(throws: BitmapFault.self) { try bench.crashed("two") }
    #expect(try bench.close() == nil)
    #expect(try bench.folder.flags() == ["one": []])
    #expect(try bench.check().isClean)
  }

  @Test func `makes it exact again, and marks begin anew`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    try bench.order(.clear(name: "b"))
    #expect(try bench.crashed() == [])
    try bench.write([1], 0)
    #expect(bench.markRoundCount == 2)
    #expect(try bench.crashed() == [range(0, 16 * mebibyte)])
  }

  @Test func `counts a request under way as made after it`() throws {
    let bench = try ImageBench()
    let slot = try bench.start(write: [1], 5 * mebibyte)
    let hasBegun = bench.image.startBitmapWork(.change([.clear(name: "b")]))
    #expect(hasBegun)
    try bench.until { !bench.isWorking }
    #expect(try bench.finish(slot) == .none)
    #expect(try bench.crashed().first?.start ?? .max <= 5 * mebibyte)
    #expect(try bench.close() == nil)
    #expect(
      try KeptBitmap(named: "b", of: bench.folder.plan("disk")).bits.runs
        == [range(5 * mebibyte, 65_536)])
  }

  @Test func `keeps what is frozen until the backup is known to be done`() throws {
    let bench = try ImageBench()
    try bench.write([1], 0)
    try bench.order(.freeze(name: "b"))
    try bench.write([1], 32 * mebibyte)
    #expect(try bench.crashed() == [range(0, 16 * mebibyte), range(32 * mebibyte, 16 * mebibyte)])
    try bench.order(.thaw(name: "b", .done))
    #expect(try bench.crashed() == [range(32 * mebibyte, 65_536)])
    try bench.order(.freeze(name: "b"))
    #expect(try bench.close() == nil)
    #expect(
      try KeptBitmap(named: "b", of: bench.folder.plan("disk")).bits.runs
        == [range(32 * mebibyte, 65_536)])
  }

  /// What a resize has made room for is not taken back, at whatever step the change is ordered.
  @Test func `waits for the end of a resize, while others write`() throws {
    let newByteCount = UInt64(40) << 30
    for number in stride(from: 0, to: 30, by: 3) {
      let bench = try ImageBench()
      try bench.write([1], 0)
      let resize = try bench.start(.resize, newByteCount, 0)
      for _ in 0..<number { bench.step() }
      let write = try bench.start(write: [1], 40 * mebibyte)
      var hasBegun = false
      try bench.until {
        if !hasBegun { hasBegun = bench.begin([persistent("x"), .clear(name: "b")]) }
        return hasBegun && !bench.isWorking
      }
      #expect(bench.changeFault == nil)
      #expect(try bench.finish(resize) == .none)
      #expect(try bench.finish(write) == .none)
      try bench.write([1], newByteCount - 1)
      #expect(try bench.crashed().last == range(newByteCount - 16 * mebibyte, 16 * mebibyte))
      #expect(try bench.close() == nil)
      #expect(try bench.check().isClean)
    }
  }

  @Test func `is refused as a whole where a part of it is`() throws {
    let bench = try ImageBench()
    #expect(throws: BitmapFault.self) {
      try bench.order(persistent("x"), .clear(name: "absent"))
    }
    #expect(bench.names == ["b"])
    #expect(try bench.close() == nil)
    #expect(try bench.check().isClean)
  }

  @Test func `removes the last bitmap, and QEMU finds none`() throws {
    let bench = try ImageBench()
    try bench.order(.remove(name: "b"))
    #expect(try bench.close() == nil)
    #expect(try bench.folder.flags() == [:])
    #expect(try bench.check("again").isClean)
    let again = try ImageBench(bench.folder, "again")
    try again.order(persistent("c"))
    #expect(try again.close() == nil)
    #expect(try bench.folder.flags("again") == ["c": ["auto"]])
  }

  @Test func `is refused by an image of version 2 and by a raw disk`() throws {
    let folder = try TemporaryFolder()
    try run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", folder.path("a"), "1M")
    try run("qemu-img", "create", "-q", "-f", "raw", folder.path("b"), "1M")
    for (name, format) in [("a", ImageFormat.qcow2), ("b", .raw)] {
      let bench = try ImageBench(folder, name, format: format)
      #expect(throws: BitmapFault.self) { try bench.order(persistent("x")) }
      #expect(bench.names.isEmpty)
    }
  }
}

@Suite struct `A bitmap that cannot be used` {
  /// The flags and the extra data of the only entry, patched in the file.
  private func patch(_ bench: TemporaryFolder, _ change: (inout [UInt8], Int) -> Void) throws {
    let path = bench.path("disk")
    var bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    let name = Array("bitmap-name-of-32-bytes-and-more".utf8)
    let place = try #require(bytes.firstRange(of: name)?.lowerBound)
    change(&bytes, place - 24)
    try Data(bytes).write(to: URL(fileURLWithPath: path))
  }

  private func folder() throws -> TemporaryFolder {
    let folder = try TemporaryFolder()
    try run("qemu-img", "create", "-q", "-f", "qcow2", folder.path("disk"), "64M")
    try run("qemu-img", "bitmap", "--add", folder.path("disk"), "bitmap-name-of-32-bytes-and-more")
    return folder
  }

  /// security.md and beyond.md, row 18: QEMU refuses such an image.
  @Test func `because of extra data stays byte by byte, and the image opens`() throws {
    let folder = try folder()
    try patch(folder) { bytes, entry in
      // 8 bytes of the name become extra data, and what records is said to lack something.
      bytes[entry + 19] = 24
      bytes[entry + 23] = 8
      bytes[entry + 15] = 0
    }
    let before = [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("disk"))))
    let bench = try ImageBench(folder, "disk")
    #expect(bench.names.isEmpty)
    try bench.write([1], 0)
    try bench.order(
      .add(name: "own", granularityByteCount: 65_536, isEnabled: true, isPersistent: true))
    #expect(try bench.close() == nil)
    let entry = try #require(before.firstRange(of: Array("name-of-32".utf8))).lowerBound - 31
    let after = [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path("disk"))))
    #expect(after.firstRange(of: before[entry..<entry + 56]) != nil)
  }

  @Test func `and should record is said to lack something from the start`() throws {
    let folder = try folder()
    try patch(folder) { bytes, entry in bytes[entry + 16] = 2 }
    let bench = try ImageBench(folder, "disk")
    #expect(bench.areInUse == [true])
    #expect(throws: BitmapFault.self) {
      try KeptBitmap(
        named: "bitmap-name-of-32-bytes-and-more", of: folder.plan("disk"))
    }
  }

  @Test func `can be removed, and hinders a resize until then`() throws {
    let folder = try folder()
    try patch(folder) { bytes, entry in bytes[entry + 15] |= 1 }
    let bench = try ImageBench(folder, "disk")
    #expect(try bench.call(.resize, 128 * mebibyte) == .notSupported)
    try bench.order(.remove(name: "bitmap-name-of-32-bytes-and-more"))
    #expect(try bench.call(.resize, 128 * mebibyte) == .none)
    #expect(try bench.close() == nil)
    #expect(try bench.check().isClean)
  }
}

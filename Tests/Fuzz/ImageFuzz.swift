// SPDX-License-Identifier: Apache-2.0
//
// Images of strangers: bytes as they are, or an image of ours with a few of its words changed, so
// that the fuzzer's luck goes into what tables say. Told about, checked, repaired, mapped, opened,
// read and written, all on disks in memory. Whatever is refused or fails, nothing traps, hangs or
// takes much memory. Source: tools/STYLE.md, "Input never traps".

import BlockTypes
import ImageTools
import LinuxIO
import NBDProtocol

@testable import DataPlane

/// Bytes that an image in memory may have.
private let imageByteCountMax: UInt64 = 64 << 20

/// The disk with the image, and an empty raw one for whatever name it gives its backing file.
private struct Strangers: RemoteOpener {
  let disk: SimulatedDisk
  let base = SimulatedDisk("base")

  init(_ contents: DiskContents) {
    disk = SimulatedDisk("disk", contents: contents)
    disk.byteCountMax = imageByteCountMax
    var empty = DiskContents()
    empty.resize(to: 70_000)
    base.replace(empty)
  }

  func recognises(_ name: String) -> Bool { true }

  func open(
    _ address: String, namedBy overlay: String?, access: ImageFile.Access
  ) throws(ImageFault) -> LayerFile {
    LayerFile(overlay == nil ? disk : base, path: address)
  }
}

// MARK: Inputs

/// Images of ours, made once, whose words the inputs change.
private let templates: [DiskContents] = {
  let shapes: [(options: String, cluster: UInt64, base: Scenario.Base)] = [
    ("cluster_size=512", 512, .none), ("cluster_size=512,refcount_bits=64", 512, .raw),
    ("cluster_size=4096,lazy_refcounts=on", 4096, .none),
    ("cluster_size=512,compat=0.10", 512, .raw),
  ]
  do {
    return try shapes.map { shape in
      var scenario = Scenario()
      scenario.options = shape.options
      scenario.clusterByteCount = shape.cluster
      scenario.base = shape.base
      scenario.diskByteCount = 200 << 10
      scenario.baseByteCount = 70_144
      let machine = try SimulatedMachine(scenario, seed: 1)
      var image = try Session.open(
        machine, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
      for start in [UInt64(0), 20_480, 100_352] {
        let range = ByteRange(start: start, end: start + 9_728)
        try Session.finish(&image, .write, range, GuestModel.bytes(range, version: 2))
      }
      try Session.finish(&image, .writeZeroes, ByteRange(start: 20_480, end: 28_672))
      try Session.settle(&image)
      image.unmapAll()
      return machine.disk.contents
    }
  } catch { fatalError("a template cannot be made: \(error)") }
}()

/// Six bytes of an input: which word of the image, what kind of value, and 24 bits of it.
private func edit(_ contents: inout DiskContents, _ bytes: ArraySlice<UInt8>) {
  let input = bytes.map(UInt64.init)
  let words = min(contents.byteCount, 64 << 10) / 8
  let offset = (input[0] << 8 | input[1]) % words * 8
  let value = input[3] << 16 | input[4] << 8 | input[5]
  let word: UInt64 =
    switch input[2] % 9 {
    case 0: 0
    case 1: .max
    case 2: 1 << (value % 64)
    case 3: 1 << 63 | value << 9
    case 4: 1 << 62 | value << 32 | value
    case 5: value << 9
    case 6: value
    case 7: value << 32
    default: 1 << 63 | 1 | value << 9
    }
  contents.write((0..<8).map { UInt8(truncatingIfNeeded: word >> (56 - 8 * $0)) }[...], at: offset)
}

private func image(of bytes: [UInt8]) -> DiskContents {
  var contents = DiskContents()
  guard bytes[0] > 0 else {
    contents.write(bytes[1...], at: 0)
    return contents
  }
  contents = templates[Int(bytes[0]) % templates.count]
  var at = 1
  while at + 6 <= bytes.count {
    edit(&contents, bytes[at..<at + 6])
    at += 6
  }
  return contents
}

// MARK: Use

func fuzzImage(_ bytes: [UInt8]) {
  guard bytes.count > 1 else { return }
  let contents = image(of: bytes)
  lookAt(contents)
  for repair in [Check.Repair.none, .leaks, .all] {
    let strangers = Strangers(contents)
    refusing {
      _ = try Check.run(
        path: "disk", format: .qcow2, repair: repair, takesLocks: false, remote: strangers
      ) { _ in }
    }
    guard repair == .all else { continue }
    use(strangers)
  }
  use(Strangers(contents))
}

/// Runs what may be refused.
private func refusing(_ body: () throws -> Void) {
  do { try body() } catch let error as Breach where error.description.contains("does not end") {
    fatalError("\(error)")
  } catch {}
}

private func lookAt(_ contents: DiskContents) {
  let strangers = Strangers(contents)
  refusing {
    for info in try ImageInfo.list(
      path: "disk", format: nil, includesBackingChain: true, takesLocks: false, remote: strangers)
    {
      _ = info.humanText
    }
  }
  refusing {
    try Map.run(
      path: "disk", format: .qcow2, takesLocks: false, byteCountMax: 1 << 24, remote: strangers
    ) { _, _ in }
  }
  require(strangers.disk.changeCount == 0, "looking at an image changed it")
}

/// Opens the image as the daemon does, and reads and writes a little of it.
private func use(_ strangers: Strangers) {
  refusing {
    var image = try Session.open(
      strangers, path: "disk", access: .readWrite, cacheByteCount: 0, pool: BlockingPool())
    defer { image.unmapAll() }
    let size = image.diskByteCount
    guard size > 0 else { return }
    let near = min(size, 256 << 10)
    func range(_ start: UInt64, _ count: UInt64) -> ByteRange {
      ByteRange(start: min(start, size), end: min(start + count, size))
    }
    let steps: [(Command, ByteRange)] = [
      (.read, range(0, near)), (.write, range(100, 700)), (.write, range(size / 2, 5_000)),
      (.writeZeroes, range(8_192, 20_000)), (.trim, range(near / 2, 40_000)),
      (.flush, range(0, 0)), (.write, range(size - min(size, 3_000), 3_000)),
      (.write, range(near / 2, 9_000)), (.flush, range(0, 0)), (.read, range(0, near)),
      (.read, range(size - min(size, 4_096), 4_096)),
    ]
    for (command, range) in steps where command == .flush || !range.isEmpty {
      let payload =
        command == .write ? [UInt8](repeating: 0x5a, count: Int(range.byteCount)) : []
      refusing { try Session.finish(&image, command, range, payload) }
    }
    refusing { try Session.settle(&image) }
  }
}

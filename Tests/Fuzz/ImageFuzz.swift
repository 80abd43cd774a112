// SPDX-License-Identifier: Apache-2.0
//
// Images of strangers: bytes as they are, or an image of ours with a few of its words changed, so
// that the fuzzer's luck goes into what tables say. Told about, checked, repaired, mapped, opened,
// read and written, all on disks in memory. Whatever is refused or fails, nothing traps, hangs or
// takes much memory. Source: tools/STYLE.md, "Input never traps".

import BlockTypes
import Glibc
import ImageTools
import LinuxIO
import NBDProtocol

@testable import DataPlane

/// Bytes that an image in memory may have.
let imageByteCountMax: UInt64 = 64 << 20

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
private let templates: [(contents: DiskContents, anatomy: ImageAnatomy)] = makeTemplates()

private func makeTemplates() -> [(contents: DiskContents, anatomy: ImageAnatomy)] {
  let shapes: [(options: String, cluster: UInt64, base: Scenario.Base)] = [
    ("cluster_size=512", 512, .none), ("cluster_size=512,refcount_bits=64", 512, .raw),
    ("cluster_size=4096,lazy_refcounts=on", 4096, .none),
    ("cluster_size=512,compat=0.10", 512, .raw),
  ]
  do {
    let own = try shapes.map { shape in
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
    return (own + othersImages()).map { ($0, ImageAnatomy($0)) }
  } catch { fatalError("a template cannot be made: \(error)") }
}

/// The images in the folder that `STRATA_FUZZ_IMAGES` names, in the order of their names.
private func othersImages() -> [DiskContents] {
  guard let folder = getenv("STRATA_FUZZ_IMAGES").map({ String(cString: $0) }) else { return [] }
  var found: [DiskContents] = []
  while let file = fopen("\(folder)/\(found.count)", "rb") {
    var bytes = [UInt8](repeating: 0, count: Int(imageByteCountMax))
    let count = fread(&bytes, 1, bytes.count, file)
    fclose(file)
    var contents = DiskContents()
    contents.write(bytes[..<count], at: 0)
    found.append(contents)
  }
  return found
}

private func image(of bytes: [UInt8]) -> DiskContents {
  var contents = DiskContents()
  guard bytes[0] > 0 else {
    contents.write(bytes[1...], at: 0)
    return contents
  }
  let template = templates[Int(bytes[0]) % templates.count]
  contents = template.contents
  var at = 1
  while at + 8 <= bytes.count {
    template.anatomy.edit(&contents, bytes[at..<at + 8])
    at += 8
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
    check(strangers, repair)
    if repair == .all { use(strangers) }
  }
  use(Strangers(contents))
}

/// Checks, and repairs as said. What a repair says it has left must be what the next check finds.
private func check(_ strangers: Strangers, _ repair: Check.Repair) {
  var options = Check.Options()
  options.format = .qcow2
  options.repair = repair
  options.takesLocks = false
  options.remote = strangers
  refusing {
    let outcome = try Check.run(path: "disk", options: options) { _ in }
    _ = outcome.humanText
    guard repair == .all else { return }
    require(
      outcome.report.corruptionCount == 0 || outcome.refusal != nil,
      "a repair leaves corruption and does not say so")
    options.repair = .none
    let again = try Check.run(path: "disk", options: options) { _ in }
    require(
      again.report.corruptionCount == outcome.report.corruptionCount
        && again.report.leakCount == outcome.report.leakCount,
      "a check after the repair finds other things than the repair said")
  }
}

/// Runs what may be refused.
@inline(never) private func refusing(_ body: () throws -> Void) {
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

// SPDX-License-Identifier: Apache-2.0
//
// Commits of drawn chains by us and by qemu-img commit, on copies of the same files: the bases read
// the same, the overlays' disks are what they were, snapshots of the base too, and its bitmaps are
// not narrower than the truth. STRATA_COMMIT_SEEDS=1-500 draws others. Source: qemu-img(1).

import Foundation
import Testing

/// A chain and what is written to it, drawn from a seed.
private struct Drawing {
  private static let unit = 512
  var random: SeededGenerator
  let baseFormat: String
  var baseOptions: [String] = []
  var hasDataFile = false
  let hasSnapshot: Bool
  let hasBitmap: Bool
  /// The base's own base, and a layer between the base and the overlay.
  let hasGround: Bool
  let hasMiddle: Bool
  let keepsOverlay: Bool
  let overlayOptions: [String]
  var sizes: [String: Int] = [:]

  init(seed: UInt64) {
    random = SeededGenerator(state: seed &* 0x9e37_79b9_7f4a_7c15 | 1)
    for _ in 0..<4 { _ = random.next() }
    func chance(_ percent: Int, _ random: inout SeededGenerator) -> Bool {
      Int.random(in: 0..<100, using: &random) < percent
    }
    baseFormat = chance(25, &random) ? "raw" : "qcow2"
    let isQcow2 = baseFormat == "qcow2"
    hasSnapshot = isQcow2 && chance(25, &random)
    let isOld = isQcow2 && chance(15, &random)
    hasBitmap = isQcow2 && !isOld && chance(40, &random)
    var isRawData = false
    if isOld {
      baseOptions = ["compat=0.10"]
    } else if isQcow2 {
      let isExtended = chance(25, &random)
      if isExtended { baseOptions.append("extended_l2=on") }
      if !isExtended, !hasSnapshot, chance(20, &random) {
        hasDataFile = true
        isRawData = chance(50, &random)
        baseOptions.append(isRawData ? "data_file=data,data_file_raw=on" : "data_file=data")
      }
      let bits = hasSnapshot ? [16, 64] : [1, 16, 64]
      baseOptions.append("refcount_bits=\(bits.randomElement(using: &random)!)")
      if chance(20, &random) { baseOptions.append("lazy_refcounts=on") }
      let clusters = isExtended ? ["16k", "64k", "1M"] : ["512", "4k", "64k", "1M"]
      baseOptions.append("cluster_size=\(clusters.randomElement(using: &random)!)")
    }
    hasGround = isQcow2 && !isRawData && chance(40, &random)
    hasMiddle = chance(20, &random)
    keepsOverlay = chance(20, &random)
    overlayOptions =
      [
        ["cluster_size=512"], ["cluster_size=4k"], [], ["extended_l2=on,cluster_size=16k"],
        ["cluster_size=2M"], ["compat=0.10"], ["compression_type=zstd"],
        ["refcount_bits=1,cluster_size=4k"],
      ].randomElement(using: &random)!
    for name in ["ground", "base", "middle", "overlay"] {
      let size = Int.random(in: 1...6, using: &random) << 20
      sizes[name] = size + [0, 0, 512, 65_536 + 1024].randomElement(using: &random)!
    }
  }

  /// Words of qemu-io that change a layer in some places.
  mutating func writes(to name: String, _ format: String, mayPack: Bool) -> [String] {
    var words = ["qemu-io", "-f", format]
    for _ in 0..<Int.random(in: 4...14, using: &random) {
      let size = sizes[name]!
      var start = Int.random(in: 0..<(size / Self.unit), using: &random) * Self.unit
      let lengths = [512, 4096, 20_480, 65_536, 300_032, 1 << 20]
      var length = min(lengths.randomElement(using: &random)!, size - start)
      let byte = Int.random(in: 1...255, using: &random)
      var what = "write -P \(byte)"
      switch Int.random(in: 0..<10, using: &random) {
      case 0, 1: what = "write -z"
      case 2: what = "write -z -u"
      case 3: what = "discard"
      case 4 where mayPack:
        // qemu-io packs a cluster, which is 2 MiB at most.
        length = 2 << 20
        start = start / length * length
        if start + length <= size { what = "write -c -P \(byte)" } else { continue }
      default: break
      }
      words += ["-c", "\(what) \(start) \(length)"]
    }
    return words + [name]
  }
}

extension Workbench {
  /// Makes the chain; its names are those of its files.
  fileprivate func make(_ drawing: inout Drawing) throws {
    let base = drawing.baseFormat
    if drawing.hasGround {
      try prepare("qemu-img create -q -f qcow2 ground \(drawing.sizes["ground"]!)")
      try change(drawing.writes(to: "ground", "qcow2", mayPack: false))
    }
    let options =
      drawing.baseOptions.isEmpty ? "" : "-o \(drawing.baseOptions.joined(separator: ","))"
    let below = drawing.hasGround ? "-b ground -F qcow2" : ""
    try prepare("qemu-img create -q -f \(base) \(options) \(below) base \(drawing.sizes["base"]!)")
    try change(drawing.writes(to: "base", base, mayPack: false))
    if drawing.hasSnapshot {
      try prepare("qemu-img snapshot -c one base")
      try change(drawing.writes(to: "base", base, mayPack: false))
    }
    if drawing.hasBitmap { try prepare("qemu-img bitmap --add -g 64k base changes") }
    var lowest = "base -F \(base)"
    if drawing.hasMiddle {
      try prepare("qemu-img create -q -f qcow2 -b \(lowest) middle \(drawing.sizes["middle"]!)")
      try change(drawing.writes(to: "middle", "qcow2", mayPack: false))
      lowest = "middle -F qcow2"
    }
    let more = drawing.overlayOptions.isEmpty ? "" : "-o \(drawing.overlayOptions[0])"
    try prepare(
      "qemu-img create -q -f qcow2 \(more) -b \(lowest) overlay \(drawing.sizes["overlay"]!)")
    let mayPack = drawing.overlayOptions.first?.contains("extended_l2") != true
    try change(drawing.writes(to: "overlay", "qcow2", mayPack: mayPack))
  }

  private func change(_ words: [String]) throws {
    let result = try run(words)
    // Some clusters cannot be packed: the image is what QEMU has made of it.
    guard !result.output.contains("no file open"), result.errors.isEmpty else {
      throw WorkbenchError("\(words): \(result.output)\(result.errors)")
    }
  }

  /// Throws unless each block in which two disks differ is dirty in the base's bitmap.
  fileprivate func expectCovered(_ before: String, _ after: String) throws {
    let map = try strata("bitmap map base changes")
    guard map.exitCode == 0 else { throw WorkbenchError("the bitmap: \(map.errors)") }
    let runs = map.output.split(separator: "\n").map { line in
      line.split(separator: " ").map { Int($0) ?? 0 }
    }
    let old = try bytes(of: before)
    let new = try bytes(of: after)
    for block in stride(from: 0, to: new.count, by: 65_536) {
      let end = min(block + 65_536, new.count)
      let was = old[min(block, old.count)..<min(end, old.count)]
      let isSame =
        was.elementsEqual(new[block..<(block + was.count)])
        && new[(block + was.count)..<end].allSatisfy { $0 == 0 }
      let isDirty = runs.contains { $0[0] <= block && end <= $0[0] + $0[1] }
      #expect(isSame || isDirty, "the block at \(block) changed and is clean")
    }
  }
}

@Suite struct `A commit of a drawn chain` {
  static let seeds: ClosedRange<UInt64> = {
    let words = ProcessInfo.processInfo.environment["STRATA_COMMIT_SEEDS"]?.split(separator: "-")
    let numbers = words?.compactMap { UInt64($0) } ?? []
    return numbers.count == 2 ? numbers[0]...numbers[1] : 1...24
  }()

  @Test(arguments: seeds) func `does to each layer what qemu-img commit does`(
    seed: UInt64
  ) throws {
    let bench = try Workbench()
    var drawing = Drawing(seed: seed)
    try bench.make(&drawing)
    let base = drawing.baseFormat
    try bench.prepare(
      "qemu-img convert -f qcow2 -O raw overlay disk",
      "qemu-img convert -f \(base) -O raw base before")
    if drawing.hasSnapshot {
      try bench.prepare("qemu-img convert -f qcow2 -O raw -l one base snapshot")
    }
    let files = ["ground", "base", "middle", "overlay", "data"].filter(bench.exists)
    try bench.prepare("mkdir theirs", "cp \(files.joined(separator: " ")) theirs")
    // A middle layer is worthless afterwards, so that nothing but the overlay counts.
    let flags = drawing.hasMiddle ? "-b base" : drawing.keepsOverlay ? "-d" : ""
    let theirs = try bench.run("env -C theirs qemu-img commit -q -f qcow2 \(flags) overlay")
    let ours = try bench.strata("commit -q \(flags) overlay")
    guard ours.exitCode == 0 else {
      // Who cannot make an old image with snapshots larger says so, and changes nothing.
      #expect(theirs.exitCode != 0, "\(drawing): \(ours.errors)")
      #expect(try bench.areSame("overlay", "qcow2", "disk", "raw"))
      return
    }
    #expect(try bench.areSame("overlay", "qcow2", "disk", "raw"), "\(drawing)")
    if theirs.exitCode == 0 {
      #expect(try bench.areSame("base", base, "theirs/base", base), "\(drawing)")
    }
    for name in ["base", "middle", "overlay"] where bench.exists(name) {
      guard name != "base" || base == "qcow2" else { continue }
      let check = try bench.run("qemu-img check -q -f qcow2 \(name)")
      #expect(check.exitCode == 0, "\(name) of \(drawing): \(check)")
    }
    try bench.prepare("qemu-img convert -f \(base) -O raw base after")
    if drawing.hasSnapshot {
      // By us: QEMU shows a snapshot with the size that the disk has now.
      try bench.convert("-f qcow2 -O raw -l one base snapshot2")
      #expect(try bench.areSame("snapshot", "raw", "snapshot2", "raw"), "\(drawing)")
    }
    if drawing.hasBitmap { try bench.expectCovered("before", "after") }
    // Whoever commits again changes nothing.
    let again = try bench.strata("commit -q \(flags) overlay")
    #expect(again.exitCode == 0, "\(drawing): \(again.errors)")
    #expect(try bench.areSame("overlay", "qcow2", "disk", "raw"), "\(drawing)")
    #expect(try bench.areSame("base", base, "after", "raw"), "\(drawing)")
  }

  @Test func `follows a base of small clusters that has to grow, and its tables with it`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f qcow2 -o cluster_size=512 base 20M",
      "qemu-img create -q -f qcow2 -o cluster_size=512 -b base -F qcow2 overlay 40M")
    // The old L1 table's clusters are in use for these soon.
    let writes = (0..<60).flatMap { ["-c", "write -P 255 \($0 * 300)k 40k"] }
    try bench.run(["qemu-io", "-f", "qcow2"] + writes + ["overlay"])
    try bench.prepare("qemu-img convert -f qcow2 -O raw overlay disk")
    let result = try bench.strata("commit overlay")
    #expect(result.exitCode == 0, "\(result.errors)")
    #expect(try bench.areSame("base", "qcow2", "disk", "raw"))
  }
}

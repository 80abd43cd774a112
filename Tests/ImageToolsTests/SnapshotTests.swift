// SPDX-License-Identifier: Apache-2.0
//
// Internal snapshots of images at rest, in turns with QEMU: each takes, applies and deletes what
// the other made, and QEMU judges content and counts. Spec: qcow2.rst, "Snapshots".

import Foundation
import Testing

@testable import ImageTools

extension Workbench {
  /// Throws unless QEMU finds no error and no leak.
  func requireClean(_ name: String, _ step: String) throws {
    let result = try run("qemu-img check -f qcow2 \(name)")
    guard result.exitCode == 0 else {
      throw WorkbenchError("after \(step): \(result.output)\(result.errors)")
    }
  }

  /// The disk of an image, or of one of its snapshots, as QEMU reads it.
  func disk(_ name: String, snapshot: String? = nil) throws -> [UInt8] {
    let choice = snapshot.map { "-l snapshot.id=\($0) " } ?? ""
    try prepare("qemu-img convert -f qcow2 -O raw \(choice)\(name) disk.raw")
    return try bytes(of: "disk.raw")
  }

  func strataMust(_ line: String) throws {
    let result = try strata(line)
    guard result.exitCode == 0 else { throw WorkbenchError("strata \(line): \(result.errors)") }
  }

  /// Runs commands of qemu-io on a qcow2 image.
  func qemuIO(_ name: String, _ commands: [String]) throws {
    let result = try run(
      ["qemu-io", "-f", "qcow2"] + commands.flatMap { ["-c", $0] } + [path(name)])
    guard result.exitCode == 0, !result.output.contains("failed") else {
      throw WorkbenchError("qemu-io \(commands): \(result.output)\(result.errors)")
    }
  }
}

@Suite struct `Snapshots in turns with QEMU` {
  @Test(arguments: [
    "cluster_size=64k", "cluster_size=512", "cluster_size=4k,compat=0.10",
    "cluster_size=4k,refcount_bits=4", "cluster_size=4k,refcount_bits=8",
    "cluster_size=512,refcount_bits=32", "cluster_size=4k,refcount_bits=64",
    "cluster_size=16k,extended_l2=on", "cluster_size=64k,lazy_refcounts=on",
    "cluster_size=2M", "cluster_size=4k,compression_type=zstd",
  ])
  func `keep what the disk was, whoever takes, applies and deletes them`(
    _ options: String
  ) throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o \(options) image 3M")
    var chance = Chance(seed: options.utf8.reduce(7) { $0 &* 31 &+ UInt64($1) })
    var kept: [(id: String, disk: [UInt8])] = []
    var next = 1
    for step in 0..<9 {
      try bench.qemuIO("image", Self.writes(&chance))
      let isOurs = chance.below(3) > 0
      let action = kept.isEmpty ? 0 : kept.count > 4 ? 2 : chance.below(3)
      switch action {
      case 0:
        kept.append(("\(next)", try bench.disk("image")))
        if isOurs {
          try bench.strataMust("snapshot create image n\(next)")
        } else {
          try bench.prepare("qemu-img snapshot -c n\(next) image")
        }
        next = (kept.compactMap { Int($0.id) }.max() ?? 0) + 1
      case 1:
        let (id, disk) = kept[chance.below(kept.count)]
        if isOurs {
          try bench.strataMust("snapshot apply image \(id)")
        } else {
          try bench.prepare("qemu-img snapshot -a \(id) image")
        }
        #expect(try bench.disk("image") == disk, "step \(step)")
      default:
        // QEMU deletes by name, and names are taken again: the oldest bearer goes.
        let (id, _) = kept.remove(at: chance.below(kept.count))
        try bench.strataMust("snapshot delete image \(id)")
        next = (kept.compactMap { Int($0.id) }.max() ?? 0) + 1
      }
      try bench.requireClean("image", "step \(step), action \(action), ours \(isOurs)")
      let seen = try bench.strata("check image")
      #expect(seen.exitCode == 0, "\(seen.output)\(seen.errors)")
      for (id, disk) in kept where chance.below(3) == 0 {
        #expect(try bench.disk("image", snapshot: id) == disk, "step \(step), snapshot \(id)")
      }
    }
    for (id, disk) in kept {
      #expect(try bench.disk("image", snapshot: id) == disk, "at the end, snapshot \(id)")
      try bench.prepare("qemu-img snapshot -a \(id) image")
      #expect(try bench.disk("image") == disk)
    }
    for (id, _) in kept { try bench.strataMust("snapshot delete image \(id)") }
    try bench.requireClean("image", "the end")
  }

  /// Some writes, zeroes and discards, and packed clusters.
  private static func writes(_ chance: inout Chance) -> [String] {
    (0..<3).map { _ in
      let offset = chance.below(40) * 65_536 + chance.below(3) * 512
      let length = (1 + chance.below(24)) * 4_096
      switch chance.below(6) {
      case 0: return "write -z \(offset) \(length)"
      case 1: return "discard \(offset / 65_536 * 65_536) 131072"
      default: return "write -P \(1 + chance.below(250)) \(offset) \(length)"
      }
    }
  }

  @Test func `go back to the size that the disk had`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 image 3M")
    try bench.qemuIO("image", ["write -P 1 0 3M"])
    try bench.strataMust("snapshot create image small")
    try bench.prepare("qemu-img resize -q image 700M")
    try bench.qemuIO("image", ["write -P 2 600M 1M"])
    let large = try bench.disk("image")
    try bench.strataMust("snapshot create image large")
    try bench.strataMust("snapshot apply image small")
    #expect(try bench.disk("image") == [UInt8](repeating: 1, count: 3 << 20))
    try bench.requireClean("image", "going back")
    try bench.strataMust("snapshot apply image large")
    #expect(try bench.disk("image") == large)
    try bench.requireClean("image", "going forth")
    try bench.prepare("qemu-img snapshot -a small image")
    #expect(try bench.disk("image") == [UInt8](repeating: 1, count: 3 << 20))
  }

  @Test func `count packed clusters as often as they are packed`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o cluster_size=64k plain 3M")
    try bench.qemuIO("plain", ["write -P 1 0 3M"])
    try bench.prepare("qemu-img convert -c -f qcow2 -O qcow2 plain image")
    try bench.strataMust("snapshot create image one")
    try bench.requireClean("image", "creation")
    try bench.qemuIO("image", ["write -P 2 0 1M"])
    try bench.strataMust("snapshot create image two")
    try bench.strataMust("snapshot apply image one")
    try bench.requireClean("image", "going back")
    try bench.strataMust("snapshot delete image two")
    try bench.strataMust("snapshot delete image one")
    try bench.requireClean("image", "deletion")
    #expect(try bench.disk("image") == [UInt8](repeating: 1, count: 3 << 20))
  }

  @Test func `leave a file that does not grow, however often they come and go`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o cluster_size=4k image 3M")
    try bench.qemuIO("image", ["write -P 1 0 3M"])
    var byteCounts: Set<Int> = []
    for round in 0..<20 {
      try bench.strataMust("snapshot create image s\(round)")
      try bench.strataMust("snapshot apply image s\(round)")
      try bench.strataMust("snapshot delete image s\(round)")
      if round > 2 { byteCounts.insert(try bench.bytes(of: "image").count) }
    }
    try bench.requireClean("image", "twenty rounds")
    #expect(byteCounts.count == 1, "\(byteCounts)")
  }

  @Test func `move the refcount table when it is full`() throws {
    let bench = try Workbench()
    // A table of one cluster counts 64 blocks of 256 clusters of 512 bytes: 8 MiB.
    try bench.prepare("qemu-img create -q -f qcow2 -o cluster_size=512 image 7800k")
    try bench.qemuIO("image", ["write -P 1 0 7800k"])
    let disk = try bench.disk("image")
    let before = try bench.word("image", at: 48)
    for number in 0..<80 where try bench.word("image", at: 48) == before {
      try bench.strataMust("snapshot create image s\(number)")
      try bench.requireClean("image", "snapshot \(number)")
      try bench.qemuIO("image", ["write -P 2 \(number * 65_536) 64k"])
    }
    #expect(try bench.word("image", at: 48) != before)
    try bench.strataMust("snapshot apply image s0")
    #expect(try bench.disk("image") == disk)
  }
}

/// Numbers that look random and are the same each time.
struct Chance {
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func below(_ bound: Int) -> Int {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return Int((state >> 33) % UInt64(bound))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Images with random damage, judged by qemu-img check and by ours; repairs of ours judged by
// qemu-img; and repairs that a power cut ends. The seed of a failure is in its message.
// Source: reference/qcow2.md 4.8.

import Foundation
import Testing

/// One random change of a structure, and the guest bytes that it may cost.
private struct Damage {
  let kind: Int
  let name: String
  let offset: Int
  let value: UInt64
  let affected: Range<Int>

  init(seed: UInt64, _ bench: Workbench) throws {
    var random = SplitMix(state: seed)
    func number(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }
    let cluster = DamagedImage.clusterByteCount
    let coverage = DamagedImage.coverageByteCount
    let l1 = try DamagedImage.l1Table(bench)
    let values: [UInt64] = [
      0, .max, 1 << (random.next() % 64), 1 << 63 | (random.next() % 64) << 12,
      (random.next() % 64) << 12, 1 << 62 | random.next() % (1 << 20), 1 << 63 | 1 << 40,
      random.next(),
    ]
    value = values[number(values.count)]
    kind = number(6)
    switch kind {
    case 0:
      let index = number(4)
      (name, offset) = ("L1 entry \(index)", l1 + 8 * index)
      affected = index * coverage..<(index + 1) * coverage
    case 1, 2:
      let table = number(2)
      let index = number(30)
      name = "L2 entry \(table), \(index)"
      offset = try DamagedImage.l2Table(bench, table) + 8 * index
      let start = table * coverage + index * cluster
      affected = start..<start + cluster
    case 3:
      (name, offset) = ("refcount table", try bench.word("image.qcow2", at: 48))
      affected = 0..<0
    case 4:
      let index = number(30)
      (name, offset) = ("counts \(index)", try DamagedImage.refcountBlock(bench) + 8 * index)
      affected = 0..<0
    default:
      let index = number(5)
      name = "snapshot table word \(index)"
      offset = try bench.word("image.qcow2", at: 64) + 8 * [0, 0, 1, 4, 4][index]
      affected = 0..<0
    }
  }
}

private struct SplitMix {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

@Suite struct `Random damage` {
  /// What ours calls an error and qemu-img 7.2 does not.
  private static let stricter = [
    "lies on", "has flags but no L2 table", "has the COPIED flag but no cluster",
    "its L1 table at host offset", "reserved bits or is not aligned",
  ]

  private func counts(_ text: String) throws -> [Int] {
    let value = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
    return ["corruptions", "leaks", "allocated-clusters", "image-end-offset"].map {
      value?[$0] as? Int ?? 0
    }
  }

  @Test(arguments: 0..<5)
  func `is judged as qemu-img judges it, and what is repaired is right for qemu-img`(
    _ part: UInt64
  ) throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    for seed in (part * 8)..<(part * 8 + 8) {
      try bench.prepare("cp before.qcow2 image.qcow2")
      let damage = try Damage(seed: seed, bench)
      try bench.poke("image.qcow2", damage.value, at: damage.offset)
      let what = "seed \(seed): \(damage.name) = 0x\(String(damage.value, radix: 16))"
      let theirs = try bench.run("qemu-img check --output=json image.qcow2")
      let ours = try bench.strata("check --output=json image.qcow2")
      let texts = try bench.strata("check image.qcow2").errors
      if theirs.exitCode != 1, !Self.stricter.contains(where: texts.contains) {
        #expect(ours.exitCode == theirs.exitCode, "\(what) \(texts)")
        // Counts, flags and leaks are counted alike.
        if damage.kind == 4 {
          #expect(try counts(ours.output) == counts(theirs.output), "\(what)")
        }
      }
      let repair = try bench.strata("check -r all --to copy.qcow2 image.qcow2")
      #expect(repair.exitCode == 0, "\(what) \(repair)")
      let verdict = try bench.run("qemu-img check copy.qcow2")
      #expect(verdict.exitCode == 0, "\(what) \(verdict)")
      try bench.expectSameContent("copy.qcow2", besides: damage.affected, what)
      try bench.prepare("rm -f copy.qcow2")
    }
  }
}

/// What a program did to a file, as strace tells it.
private enum FileCall {
  case write(offset: Int, bytes: [UInt8])
  case truncate(byteCount: Int)
  case synchronize

  static func list(of trace: String) -> [FileCall] {
    trace.split(separator: "\n").compactMap { line in
      if line.contains("fdatasync(") { return .synchronize }
      if let start = line.range(of: "ftruncate(") {
        let words = line[start.upperBound...].split(separator: ",")
        return Int(words[1].prefix { $0 != ")" }.trimmingCharacters(in: .whitespaces))
          .map { .truncate(byteCount: $0) }
      }
      guard line.contains("pwrite64(") else { return nil }
      let parts = line.split(separator: "\"")
      let bytes = parts[1].split(separator: "x").compactMap {
        UInt8($0.prefix(2), radix: 16)
      }
      let numbers = parts[2].split(separator: ",")
      return Int(numbers[1].prefix { $0 != ")" }.trimmingCharacters(in: .whitespaces))
        .map { .write(offset: $0, bytes: bytes) }
    }
  }

  static func apply(_ calls: some Sequence<FileCall>, to image: [UInt8]) -> [UInt8] {
    var image = image
    for call in calls {
      switch call {
      case .write(let offset, let bytes):
        if image.count < offset + bytes.count {
          image += [UInt8](repeating: 0, count: offset + bytes.count - image.count)
        }
        image.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
      case .truncate(let count):
        image =
          Array(image.prefix(count)) + [UInt8](repeating: 0, count: max(0, count - image.count))
      case .synchronize: break
      }
    }
    return image
  }
}

@Suite struct `A repair that a power cut ends` {
  /// Damage to an L2 entry, to counts that are too low, to the refcount table, to an L1 entry.
  @Test(arguments: 0..<4) func `leaves an image that is no worse, whatever was written`(
    _ kind: Int
  ) throws {
    let bench = try Workbench()
    try DamagedImage.make(bench)
    var affected = 0..<0
    switch kind {
    case 0:
      try bench.poke("image.qcow2", UInt64(0x200), at: try DamagedImage.l2Table(bench))
      affected = 0..<4096
    case 1:
      try bench.poke("image.qcow2", UInt64(0), at: try DamagedImage.refcountBlock(bench) + 24)
    case 2: try bench.poke("image.qcow2", UInt64(0), at: try bench.word("image.qcow2", at: 48))
    default:
      try bench.poke("image.qcow2", UInt64(0x200), at: try DamagedImage.l1Table(bench))
      affected = 0..<DamagedImage.coverageByteCount
    }
    let damaged = try bench.bytes(of: "image.qcow2")
    let words = [
      "strace", "-f", "-xx", "-s", "9000000", "-o", "trace", "-e",
      "trace=pwrite64,ftruncate,fdatasync", try Workbench.strataPath, "check", "-r", "all",
      "image.qcow2",
    ]
    #expect(try bench.run(words).exitCode == 0)
    let calls = FileCall.list(of: try String(contentsOfFile: bench.path("trace"), encoding: .utf8))
    #expect(FileCall.apply(calls, to: damaged) == (try bench.bytes(of: "image.qcow2")))
    var random = SplitMix(state: UInt64(kind))
    for length in 0...calls.count {
      // What came before the last synchronisation is there; of the rest, any part.
      let sure =
        calls[..<length].lastIndex { if case .synchronize = $0 { true } else { false } } ?? 0
      for attempt in 0..<2 {
        let rest = calls[sure..<length].filter { _ in attempt == 0 || random.next() % 2 == 0 }
        let state = FileCall.apply(calls[..<sure] + rest, to: damaged)
        try bench.write(state, to: "state.qcow2")
        #expect(try bench.strata("check -q -r all state.qcow2").exitCode == 0, "\(length)")
        #expect(try bench.run("qemu-img check -q state.qcow2").exitCode == 0, "\(length)")
        try bench.expectSameContent("state.qcow2", besides: affected)
      }
    }
  }
}

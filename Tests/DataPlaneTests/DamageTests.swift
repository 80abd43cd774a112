// SPDX-License-Identifier: Apache-2.0
//
// Images whose tables are damaged: requests may fail, but nothing traps, spins or makes it worse.
// Source: tools/STYLE.md, "Input never traps"; qcow2.rst, "Host cluster management".

import BlockTypes
import Foundation
import TestSupport
import Testing

@testable import DataPlane

/// A writer of single words of an image file.
private struct Patcher {
  private let path: String

  init(_ folder: TemporaryFolder, _ name: String) { path = folder.path(name) }

  func word(_ offset: UInt64) throws -> UInt64 {
    let image = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
    defer { image.closeFile() }
    try image.seek(toOffset: offset)
    return try image.read(upToCount: 8)?.reduce(0) { $0 << 8 | UInt64($1) } ?? 0
  }

  func set(_ offset: UInt64, _ value: UInt64) throws {
    let image = try FileHandle(forUpdating: URL(fileURLWithPath: path))
    try image.seek(toOffset: offset)
    try image.write(contentsOf: Data(wire(value)))
    try image.close()
  }

  func refcountTable() throws -> UInt64 { try word(48) }
  func l1Table() throws -> UInt64 { try word(40) }
}

/// Runs writes, trims and a flush on an image after `damage`, in a process that may not run for
/// longer than 20 seconds, and checks that the header is still there.
private func survive(_ damage: (Patcher) throws -> Void) throws {
  alarm(20)
  let folder = try TemporaryFolder()
  try folder.qemu("qemu-img create -q -f qcow2 @disk 4M")
  try folder.qemuIO("disk", "write -P 7 0 256k")
  let patcher = Patcher(folder, "disk")
  try damage(patcher)
  guard let bench = opened(folder) else { return }
  for number: UInt64 in 0..<16 {
    _ = try bench.write([1, 2, 3], number * 100_000)
    _ = try bench.readError(number * 100_000, 5_000)
    _ = try bench.call(.trim, number * 200_000, 200_000)
  }
  _ = try bench.flush()
  let magic = try patcher.word(0) >> 32
  guard magic == 0x5146_49fb else { throw BenchError("the header was overwritten") }
}

/// Opens the damaged image; nil when that is refused, which is an answer too.
private func opened(_ folder: TemporaryFolder) -> ImageBench? {
  do { return try ImageBench(folder, "disk") } catch { return nil }
}

@Suite struct `A damaged image survives requests` {
  @Test func `when no block counts its first clusters`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.refcountTable(), 0) }
    }
  }

  @Test func `when the block of its first clusters is the header`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.refcountTable() + 8, 65_536) }
    }
  }

  @Test func `when its refcount block is not aligned`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.refcountTable(), 131_072 + 512) }
    }
  }

  @Test func `when its refcount block lies behind the file`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.refcountTable(), 1 << 40) }
    }
  }

  @Test func `when its counts are all zero`() async {
    await #expect(processExitsWith: .success) {
      try survive { patcher in
        let block = try patcher.word(try patcher.refcountTable())
        for number: UInt64 in 0..<8 { try patcher.set(block + number * 8, 0) }
      }
    }
  }

  @Test func `when its counts are all at their maximum`() async {
    await #expect(processExitsWith: .success) {
      try survive { patcher in
        let block = try patcher.word(try patcher.refcountTable())
        for number: UInt64 in 0..<8 { try patcher.set(block + number * 8, .max) }
      }
    }
  }

  @Test func `when an L1 entry leads behind the file`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.l1Table(), 1 << 63 | 1 << 40) }
    }
  }

  @Test func `when an L1 entry leads to the refcount block`() async {
    await #expect(processExitsWith: .success) {
      try survive { patcher in
        let block = try patcher.word(try patcher.refcountTable())
        try patcher.set(try patcher.l1Table(), 1 << 63 | block)
      }
    }
  }

  @Test func `when an L1 entry has reserved bits`() async {
    await #expect(processExitsWith: .success) {
      try survive { try $0.set($0.l1Table(), try $0.word($0.l1Table()) | 0x7f00_0000_0000_0001) }
    }
  }

  @Test func `when L2 entries lead everywhere`() async {
    await #expect(processExitsWith: .success) {
      try survive { patcher in
        let table = try patcher.word(try patcher.l1Table()) & 0x00ff_ffff_ffff_fe00
        for number: UInt64 in 0..<16 {
          try patcher.set(table + number * 8, 1 << 63 | number << 52 | number << 16)
        }
      }
    }
  }

  @Test func `when compressed clusters are no such thing`() async {
    await #expect(processExitsWith: .success) {
      try survive { patcher in
        let table = try patcher.word(try patcher.l1Table()) & 0x00ff_ffff_ffff_fe00
        for number: UInt64 in 0..<16 {
          try patcher.set(table + number * 8, 1 << 62 | number << 54 | number << 15)
        }
      }
    }
  }
}

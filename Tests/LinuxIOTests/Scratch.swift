// SPDX-License-Identifier: Apache-2.0
//
// Files, buffers and waiting for the tests of LinuxIO. Creates files below a temporary folder.

import Foundation
import LinuxIO
import TestSupport

/// Files of one test, removed with it.
struct Scratch {
  let folder: TemporaryFolder

  init() throws { folder = try TemporaryFolder() }

  /// A file with `bytes`, opened.
  func file(
    _ bytes: [UInt8], access: ImageFile.Access = .readWrite, name: String = "disk"
  ) throws -> LayerFile {
    let path = folder.path(name)
    try Data(bytes).write(to: URL(fileURLWithPath: path))
    return LayerFile(try ImageFile(opening: path, access: access), path: path)
  }

  func contents(_ name: String = "disk") throws -> [UInt8] {
    [UInt8](try Data(contentsOf: URL(fileURLWithPath: folder.path(name))))
  }
}

/// Bytes without a zero among them, different for each `seed`.
func pattern(_ count: Int, seed: Int = 0) -> [UInt8] {
  (0..<count).map { UInt8(1 + ($0 * 31 + $0 / 512 + seed * 101) % 255) }
}

/// What the completions of one drain said, by tag.
typealias Outcomes = [UInt64: Int32]

/// Submits, and takes completions until nothing is in flight or ten seconds have passed.
func drain(_ queue: inout DiskQueue) -> Outcomes {
  guard let tick = try? IntervalTimer(milliseconds: 20) else { return [:] }
  var outcomes: Outcomes = [:]
  let deadline = Deadline(seconds: 10)
  while queue.inFlightCount > 0, deadline.secondsLeft > 0 {
    queue.submit()
    while let completion = queue.nextCompletion() { outcomes[completion.tag] = completion.errno }
    if queue.mustWait { _ = queue.wait(orReadable: tick.descriptor) }
  }
  return outcomes
}

/// Waits until `descriptor` can be read and returns whether it can.
@discardableResult func waitForInput(_ descriptor: Int32, milliseconds: Int32) -> Bool {
  var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return poll(&entry, 1, milliseconds) > 0
}

/// A buffer of fresh memory, which the process keeps.
func makeBuffer(_ bytes: [UInt8], byteCount: Int? = nil) -> IOBuffer {
  var pool = BufferPool()
  guard let buffer = pool.acquire(byteCount: byteCount ?? bytes.count) else { return .empty }
  buffer.put(bytes, at: 0)
  return buffer
}

extension IOBuffer {
  func put(_ bytes: [UInt8], at start: Int) {
    withAddress(start, bytes.count) { $0.copyMemory(from: bytes, byteCount: bytes.count) }
  }

  func bytes(_ start: Int, _ count: Int) -> [UInt8] {
    withAddress(start, count) { Array(UnsafeRawBufferPointer(start: $0, count: count)) }
  }
}

extension LayerFile {
  /// The macros of Swift Testing take copyable receivers only; an `ImageFile` is not.
  func enableDirect() -> UInt64? { file.enableDirect() }
}

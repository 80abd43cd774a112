// SPDX-License-Identifier: Apache-2.0
//
// An image that another NBD server keeps, and stratad in front of it.

import Foundation
import TestSupport

/// Servers of exports and one stratad, in a folder of their own.
final class RemoteBench {
  /// Who keeps the export.
  enum Peer: String, CaseIterable, Sendable {
    case qemuNBD = "qemu-nbd"
    case nbdkit
  }

  let folder: TemporaryFolder
  private(set) var base: Daemon?
  private(set) var daemon: Daemon?

  init() throws { folder = try TemporaryFolder() }

  deinit {
    daemon?.stop()
    base?.stop()
  }

  /// The address of the export that `serveBase` serves.
  var uri: String { "nbd+unix:///base?socket=\(folder.path("base.sock"))" }
  /// The address of stratad's export.
  var ownURI: String { "nbd+unix:///?socket=\(folder.path("s"))" }

  /// Bytes of a disk with a hole in its middle, and none of its data zero.
  static func contents(_ count: Int, seed: Int = 0) -> [UInt8] {
    (0..<count).map { index in
      let isHole = index >= count / 4 && index < count / 2
      return isHole ? 0 : UInt8(truncatingIfNeeded: (index / 512 &* 7 &+ index &+ seed) % 255 + 1)
    }
  }

  /// Makes a raw file, with holes where there are whole blocks of zeroes.
  func makeRaw(_ name: String, _ bytes: [UInt8]) throws {
    try Data(bytes).write(to: URL(fileURLWithPath: folder.path("\(name).full")))
    try run(
      "qemu-img", "convert", "-q", "-f", "raw", "-O", "raw", folder.path("\(name).full"),
      folder.path(name))
  }

  /// Starts the server of `image`, which is told to be raw.
  func serveBase(
    _ peer: Peer = .qemuNBD, image: String = "base", isReadOnly: Bool = true,
    filters: [String] = [], parameters: [String] = []
  ) throws {
    let socket = folder.path("base.sock")
    // nbdkit does not bind where a killed one was.
    unlink(socket)
    let access = isReadOnly ? ["-r"] : []
    switch peer {
    case .qemuNBD:
      base = try Daemon(
        requireTool("qemu-nbd"),
        ["-t", "-e", "8", "-f", "raw", "--discard=unmap", "-x", "base", "-k", socket] + access
          + [folder.path(image)],
        socketPath: socket, readiness: .socketAnswers)
    case .nbdkit:
      base = try Daemon(
        requireTool("nbdkit"),
        ["-f", "-U", socket] + access + filters.map { "--filter=\($0)" }
          + ["file", folder.path(image)] + parameters,
        socketPath: socket, readiness: .socketAnswers)
    }
    // A stratad that was started as root connects again as another user.
    chmod(socket, 0o666)
  }

  /// Ends the server as a power cut would.
  func killBase() {
    guard let base else { return }
    kill(base.processID, SIGKILL)
    base.stop()
    self.base = nil
  }

  /// Makes an overlay on the export with strata.
  func makeOverlay(
    format: String = "raw", size: Int? = nil, options: String = "cluster_size=65536"
  ) throws {
    let result = try runTool(
      [
        try ServedProcess.path(of: "strata"), "create", "-q", "-f", "qcow2", "-o", options, "-b",
        uri, "-F", format, folder.path("disk"),
      ] + (size.map { ["\($0)"] } ?? []))
    guard result.code == 0 else { throw ServeError(result.error) }
  }

  /// Serves the overlay, or another image.
  func serve(
    _ more: [String] = [], image: String? = nil, format: String = "qcow2"
  ) throws {
    let socket = folder.path("s")
    daemon = try Daemon(
      ServedProcess.path(of: "stratad"),
      [
        image ?? folder.path("disk"), "--format", format, "--socket", socket, "--export-name", "",
        "--allow-remote-base", uri,
      ] + more, socketPath: socket)
  }

  func client(contexts: [String] = []) throws -> WireClient {
    try WireClient.entered(path: folder.path("s"), contexts: contexts)
  }

  /// Ends stratad and returns its exit code.
  func stop() -> Int32? {
    defer { daemon = nil }
    return daemon?.stop()
  }
}

/// Requests at random places, on a disk and on its model in memory.
struct RandomTraffic {
  var generator: SeededGenerator
  var model: [UInt8]

  init(seed: UInt64, model: [UInt8]) {
    generator = SeededGenerator(state: seed)
    self.model = model
  }

  /// A range that begins and ends anywhere, mostly short.
  private mutating func range() -> Range<Int> {
    let count = Int.random(
      in: 1...(Int.random(in: 0..<8, using: &generator) == 0 ? 300_000 : 9_000),
      using: &generator)
    let start = Int.random(in: 0..<model.count, using: &generator)
    return start..<min(model.count, start + count)
  }

  /// Does one thing and returns what is wrong with its answer, if anything is.
  mutating func step(_ client: WireClient, writes: Bool = true) throws -> String? {
    let range = range()
    let what = Int.random(in: 0..<(writes ? 10 : 4), using: &generator)
    let offset = UInt64(range.lowerBound)
    let flags: UInt16 = Int.random(in: 0..<4, using: &generator) == 0 ? WireFlag.fua : 0
    switch what {
    case 0..<4:
      let outcome = try client.read(offset, range.count)
      guard outcome.error == 0 else { return "READ \(range): error \(outcome.error)" }
      return outcome.data == Array(model[range]) ? nil : "READ \(range): other bytes"
    case 4..<8:
      let byte = UInt8.random(in: 1...255, using: &generator)
      let bytes = range.map { UInt8(truncatingIfNeeded: $0) ^ byte }
      model.replaceSubrange(range, with: bytes)
      let error = try client.write(offset, bytes, flags: flags)
      return error == 0 ? nil : "WRITE \(range): error \(error)"
    case 8:
      let extra = Bool.random(using: &generator) ? WireFlag.noHole : 0
      model.replaceSubrange(range, with: repeatElement(0, count: range.count))
      let error = try client.call(
        .writeZeroes, flags: flags | extra, offset: offset, length: UInt32(range.count)
      ).error
      return error == 0 ? nil : "WRITE_ZEROES \(range): error \(error)"
    default:
      let error = try client.flush()
      return error == 0 ? nil : "FLUSH: error \(error)"
    }
  }
}

/// SplitMix64 (public domain, Vigna): the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
    return word ^ (word >> 31)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The option --compress of an export: said on the command line, for one export or in a file, and
// refused where the format has no compressed clusters. Spec: qcow2.rst, "Compressed Clusters
// Descriptor"; tools/decisions/0030.

import Foundation
import TestSupport
import Testing

@Suite struct `An export with --compress` {
  /// A qcow2 image of 1 MiB with options of its own.
  private func makeImage(_ fixture: ServeFixture, _ options: String = "") throws -> String {
    let image = fixture.folder.path("disk.qcow2")
    let words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    let result = try runTool(words + (options.isEmpty ? [] : ["-o", options]) + [image, "1M"])
    try #require(result.code == 0, "\(result)")
    return image
  }

  /// Clusters of the image that are compressed, as qemu-img counts them, which finds it clean.
  private func compressedCount(_ image: String) throws -> Int {
    let result = try runTool(["qemu-img", "check", "--output=json", "-f", "qcow2", image])
    try #require(result.code == 0, "\(result)")
    let text = result.output
    guard let range = text.range(of: "\"compressed-clusters\": ") else { return 0 }
    return Int(text[range.upperBound...].prefix { $0.isNumber }) ?? 0
  }

  private func write(_ fixture: ServeFixture, export: String = "") throws {
    let client = try WireClient.entered(path: fixture.socket, export: export)
    #expect(try client.write(0, [UInt8](repeating: 7, count: 4 << 16)) == 0)
    #expect(try client.read(0, 4 << 16).data == [UInt8](repeating: 7, count: 4 << 16))
  }

  @Test func `writes clusters that QEMU knows to be compressed`() throws {
    let fixture = try ServeFixture()
    let image = try makeImage(fixture)
    let server = try ServedProcess(
      stratad: [image, "--socket", fixture.socket, "--compress=on"]
    ).waitUntilReady()
    try write(fixture)
    #expect(server.stop() == 0)
    #expect(try compressedCount(image) == 4)
  }

  @Test func `has a word of its own among several, and off is off`() throws {
    let fixture = try ServeFixture()
    let image = try makeImage(fixture)
    let other = fixture.folder.path("other.qcow2")
    try FileManager.default.copyItem(atPath: image, toPath: other)
    let server = try ServedProcess(
      stratad: [
        "--export", "one=\(image)", "--export", "two=\(other),compress=off", "--compress", "on",
        "--socket", fixture.socket,
      ]
    ).waitUntilReady()
    try write(fixture, export: "one")
    try write(fixture, export: "two")
    #expect(server.stop() == 0)
    #expect(try compressedCount(image) == 4)
    #expect(try compressedCount(other) == 0)
  }

  @Test func `is a line of the configuration file`() throws {
    let fixture = try ServeFixture()
    let image = try makeImage(fixture)
    let config = fixture.folder.path("config")
    try "[export one]\nimage = \(image)\ncompress = on\n"
      .write(toFile: config, atomically: true, encoding: .utf8)
    let server = try ServedProcess(
      stratad: ["--config", config, "--socket", fixture.socket]
    ).waitUntilReady()
    try write(fixture, export: "one")
    #expect(server.stop() == 0)
    #expect(try compressedCount(image) == 4)
  }

  @Test func `is refused for a raw image`() throws {
    let fixture = try ServeFixture()
    let text = try ServeFixture.refusal(fixture.arguments + ["--compress", "on"])
    #expect(text.contains("a raw image has no compressed clusters"))
    #expect(text.contains("compress=off"))
  }

  @Test func `is refused for an image with a data file`() throws {
    let fixture = try ServeFixture()
    let image = try makeImage(fixture, "data_file=\(fixture.folder.path("data"))")
    let text = try ServeFixture.refusal([image, "--socket", fixture.socket, "--compress", "on"])
    #expect(text.contains("an image with an external data file has no compressed clusters"))
  }

  @Test func `is refused for an encrypted image`() throws {
    let fixture = try ServeFixture()
    let image = fixture.folder.path("disk.qcow2")
    let key = fixture.folder.path("key")
    try "open-sesame".write(toFile: key, atomically: true, encoding: .utf8)
    // Not QEMU's, which gives up where it cannot measure how fast a busy machine is.
    let result = try runTool([
      ServedProcess.path(of: "strata"), "create", "-q", "-f", "qcow2", "--key-file", key, "-o",
      "encrypt.format=luks,encrypt.iter-time=10", image, "1M",
    ])
    try #require(result.code == 0, "\(result)")
    let text = try ServeFixture.refusal([
      image, "--socket", fixture.socket, "--key-file", key, "--compress", "on",
    ])
    #expect(text.contains("an encrypted image has no compressed clusters"))
  }

  @Test func `means nothing where nothing is written`() throws {
    let fixture = try ServeFixture()
    let server = try fixture.serve("--read-only", "--compress", "on")
    #expect(server.stop() == 0)
  }
}

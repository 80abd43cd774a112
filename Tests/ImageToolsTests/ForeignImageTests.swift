// SPDX-License-Identifier: Apache-2.0
//
// Images of other programs, made by qemu-img and looked at by both.

import Foundation
import Testing

/// What qemu-img makes: a format, its options, and whether both maps must be the same.
struct ForeignCase: CustomTestStringConvertible, Sendable {
  let format: String
  let options: String
  /// VHDX images have no map in QEMU.
  let comparesMap: Bool

  var testDescription: String { "\(format) \(options)" }
  var flags: String { options.isEmpty ? "-O \(format)" : "-O \(format) -o \(options)" }

  static let all: [ForeignCase] =
    [
      "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
      "streamOptimized",
    ].map { ForeignCase(format: "vmdk", options: "subformat=\($0)", comparesMap: true) }
    + ["dynamic", "fixed", "dynamic,force_size=on", "fixed,force_size=on"].map {
      ForeignCase(format: "vpc", options: "subformat=\($0)", comparesMap: true)
    }
    + ["1M", "2M", "32M", "256M"].flatMap { size in
      ["dynamic", "fixed"].map {
        ForeignCase(
          format: "vhdx", options: "subformat=\($0),block_size=\(size)", comparesMap: false)
      }
    }
    + ["", "static=on"].map { ForeignCase(format: "vdi", options: $0, comparesMap: true) }
    + ["64k", "1M"].map {
      ForeignCase(format: "parallels", options: "cluster_size=\($0)", comparesMap: true)
    }
    + [ForeignCase(format: "qcow", options: "", comparesMap: true)]
}

extension Workbench {
  /// A raw disk of 20.5 MiB with random bytes, zeroes and holes.
  func makeForeignSource() throws {
    try prepare("truncate -s 21495808 source.raw")
    for write in ["7 0 100k", "9 3M 70000", "0 5M 1M", "3 20M 512k"] {
      try run(["qemu-io", "-f", "raw", "-c", "write -P \(write)", "source.raw"])
    }
    let disk = try #require(FileHandle(forUpdatingAtPath: path("source.raw")))
    defer { try? disk.close() }
    var random = SystemRandomNumberGenerator()
    for offset in [1_234_432, 9 << 20, 13_000_192] {
      try disk.seek(toOffset: UInt64(offset))
      let bytes = (0..<150_000).map { _ in UInt8.random(in: 0...255, using: &random) }
      try disk.write(contentsOf: Data(bytes))
    }
  }

  func makeForeign(_ made: ForeignCase) throws {
    try makeForeignSource()
    try prepare("qemu-img convert -f raw \(made.flags) source.raw image")
  }
}

@Suite struct `images of other programs` {
  @Test(arguments: ForeignCase.all)
  func `have the size and the map that qemu-img sees`(made: ForeignCase) throws {
    let bench = try Workbench()
    try bench.makeForeign(made)
    let sizes = try ["qemu-img", Workbench.strataPath].map { program in
      let text = try bench.run([program, "info", "--output=json", "-f", made.format, "image"])
      #expect(text.exitCode == 0, "\(text.errors)")
      return text.output.split(separator: "\n").filter {
        $0.contains("virtual-size") || $0.contains("\"format\": \"\(made.format)")
      }.map { $0.trimmingCharacters(in: CharacterSet(charactersIn: " ,")) }
    }
    #expect(sizes[0].first == sizes[1].first)
    #expect(sizes[1].contains("\"format\": \"\(made.format)\""))
    if made.comparesMap {
      let map = "map --output=json -f \(made.format) image"
      #expect(try bench.run("qemu-img \(map)").output == bench.strata(map).output)
    }
  }

  @Test(arguments: ["vmdk", "vpc", "vhdx", "vdi", "qcow", "parallels"])
  func `are known by how they begin`(format: String) throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f \(format) image 10M")
    let info = try bench.strata("info image")
    #expect(info.output.contains("file format: \(format)\n"), "\(info)")
  }

  @Test func `other formats are refused where one writes`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f vdi image 10M")
    for verb in ["check -f vdi image", "create -f vdi new 1M", "create -f qcow2 -b image -F vdi x"]
    {
      let result = try bench.strata(verb)
      #expect(result.exitCode != 0, "\(verb)")
      #expect(result.errors.contains("not supported"), "\(result.errors)")
    }
  }
}

@Suite struct `a VMDK that names other files` {
  private static func descriptor(_ extents: String) -> [UInt8] {
    Array(
      """
      # Disk DescriptorFile
      version=1
      CID=12345678
      parentCID=ffffffff
      createType="monolithicFlat"

      \(extents)

      """.utf8)
  }

  // CVE-2022-47951: an uploaded description reads files of the host.
  @Test(arguments: [
    "/etc/passwd", "../secret", "folder/file", "..", "", "..\\\\secret", "file\u{1}",
  ])
  func `opens none but plain names in its own folder`(name: String) throws {
    let bench = try Workbench()
    try bench.write(Self.descriptor("RW 1 FLAT \"\(name)\" 0"), to: "image")
    try bench.write([UInt8](repeating: 7, count: 512), to: "secret")
    let map = try bench.strata("map -f vmdk image")
    #expect(map.exitCode == 1)
    #expect(map.errors.contains("not the plain name of a file"), "\(map.errors)")
  }

  @Test func `opens nothing when nobody said that it is a VMDK`() throws {
    let bench = try Workbench()
    try bench.write(Self.descriptor("RW 1 FLAT \"secret\" 0"), to: "image")
    try bench.write([UInt8](repeating: 7, count: 512), to: "secret")
    let map = try bench.strata("map image")
    #expect(map.exitCode == 1)
    #expect(map.errors.contains("say it (-f vmdk)"), "\(map.errors)")
    #expect(try bench.strata("map -f vmdk image").exitCode == 0)
  }

  @Test func `info opens exactly one file`() throws {
    let bench = try Workbench()
    try bench.write(Self.descriptor("RW 2048 FLAT \"missing\" 0"), to: "image")
    let info = try bench.strata("info image")
    #expect(info.output.contains("virtual size: 1 MiB"), "\(info)")
  }

  @Test func `may not name itself`() throws {
    let bench = try Workbench()
    try bench.write(Self.descriptor("RW 1 FLAT \"image\" 0"), to: "image")
    #expect(try bench.strata("map -f vmdk image").errors.contains("names itself"))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Which file an image may name for its data, and images with one that `create` makes.
// Source: qcow2.rst, "External data file name string"; security.md 2.3 (CVE-2024-32498,
// CVE-2024-4467).

import BlockTypes
import Foundation
import LinuxIO
import Qcow2
import Testing

@testable import ImageTools

extension Workbench {
  /// An image whose data file has the name `name`, whatever it looks like.
  fileprivate func makeNaming(_ name: String) throws {
    var header = Header(
      version: 3, geometry: ClusterGeometry(clusterBits: 16, refcountOrder: 4),
      diskByteCount: 1 << 20)
    try NewImageLayout(geometry: header.geometry, diskByteCount: 1 << 20).apply(to: &header)
    try strata("create -q -f qcow2 image 1M")
    header.incompatibleFeatures.insert(.externalDataFile)
    header.extensions.append(
      HeaderExtension(
        type: HeaderExtension.externalDataFileType, content: Array(name.utf8)))
    let file = try FileHandle(forUpdating: URL(fileURLWithPath: path("image")))
    try file.write(contentsOf: Data(try header.encode()))
    try file.close()
  }

  fileprivate func open(
    _ options: OpenChain.Options = OpenChain.Options(), access: ImageFile.Access = .readWrite
  ) throws -> [OpenedLayer] {
    try OpenChain.open(path: path("image"), format: .qcow2, access: access, options: options)
  }
}

@Suite struct `The data file that an image names` {
  @Test func `is opened when it is in the image's folder or below it`() throws {
    let bench = try Workbench()
    try bench.make(["mkdir below", "truncate -s 1M data", "truncate -s 1M below/data"])
    for name in ["data", "./data", "below/data", bench.path("data")] {
      try bench.makeNaming(name)
      let layers = try bench.open()
      let data = try #require(layers[0].dataStorage)
      #expect(
        try data.identity()
          == LayerFile(
            try ImageFile(
              opening: name.hasPrefix("/") ? name : bench.path(name), access: .readOnly), path: ""
          )
          .identity())
    }
  }

  @Test(arguments: ["/etc/passwd", "../../../../../../etc/passwd", "link/passwd"])
  func `is not opened elsewhere, unless the user allows it by name`(_ name: String) throws {
    let bench = try Workbench()
    try bench.make(["ln -s /etc link"])
    try bench.makeNaming(name)
    let error = #expect(throws: ImageFault.self) { try bench.open(access: .readOnly) }
    #expect(error?.kind == .refused)
    #expect(error?.cause.contains("folder") == true)
    var options = OpenChain.Options()
    options.allowed = AllowedFiles(data: ["/etc/passwd"])
    #expect(try bench.open(options, access: .readOnly)[0].dataStorage != nil)
  }

  // CVE-2024-4467: such names are names of files, and nothing else.
  @Test(arguments: [
    "json:{\"driver\":\"raw\"}", "nbd://localhost", "file:data", "fat:/etc", "https://localhost/x",
  ])
  func `is never anything but a file's name`(_ name: String) throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M data"])
    try bench.makeNaming(name)
    let error = #expect(throws: ImageFault.self) { try bench.open() }
    #expect(error?.cause.contains("No such file") == true, "\(String(describing: error))")
  }

  @Test func `is missed with a clear error, and info does not need it`() throws {
    let bench = try Workbench()
    try bench.makeNaming("gone")
    let error = #expect(throws: ImageFault.self) { try bench.open() }
    #expect(error?.cause.contains("data file") == true)
    #expect(error?.cause.contains("No such file") == true)
    let info = try bench.strata("info image")
    #expect(info.exitCode == 0)
    #expect(info.output.contains("data file: gone"))
  }

  @Test func `is not the image itself, nor its base`() throws {
    let bench = try Workbench()
    try bench.makeNaming("image")
    #expect(throws: ImageFault.self) { try bench.open() }
  }

  @Test func `is locked as the image is`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M data"])
    try bench.makeNaming("data")
    let layers = try bench.open()
    let other = try bench.run("qemu-io -f raw -c write_0_512 data")
    #expect(other.exitCode != 0)
    withExtendedLifetime(layers) {}
  }

  @Test func `has to be named by an image that says it has one`() throws {
    let bench = try Workbench()
    try bench.strata("create -q -f qcow2 image 1M")
    try bench.poke("image", UInt64(4), at: 72)
    let error = #expect(throws: ImageFault.self) { try bench.open() }
    #expect(error?.kind == .corrupt)
  }

  @Test func `stays raw when the image is opened for writing`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M"])
    _ = try bench.open()
    #expect(try bench.word("image", at: 88) == 2)
  }
}

@Suite struct `An image created with a data file` {
  static let options = [
    "-f qcow2 -o data_file=data image 1G", "-f qcow2 -o data_file=data,compat=v3 image 1000k",
    "-f qcow2 -o data_file=data,data_file_raw=on image 1G",
    "-f qcow2 -o data_file=data,extended_l2=on image 1G",
    "-f qcow2 -o data_file=data,data_file_raw=on,extended_l2=on image 1000k",
  ]

  @Test(arguments: options) func `is announced and described as qemu-img does`(
    _ line: String
  ) throws {
    let bench = try Workbench()
    let theirs = try bench.run("qemu-img create \(line)")
    let theirInfo = try bench.run("qemu-img info --output=json image").output
    try bench.prepare("rm image data")
    let ours = try bench.strata("create \(line)")
    #expect(ours == theirs)
    let infos = try [theirInfo, bench.run("qemu-img info --output=json image").output].map { text in
      var object = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
      object?["actual-size"] = nil
      return object.map { NSDictionary(dictionary: $0) }
    }
    #expect(infos[0] == infos[1])
    #expect(try bench.run("qemu-img check image").exitCode == 0)
    try bench.make(["qemu-io -c write_0_900k image"])
    #expect(try bench.run("qemu-img check image").exitCode == 0)
  }

  static let refusals: [(options: String, text: String)] = [
    ("-o data_file_raw=on image 1G", "data file"),
    ("-o data_file=data,compat=0.10 image 1G", "version 3"),
    ("-o data_file=data,data_file_raw=on -b base -F raw image", "backing"),
    ("-o data_file=nbd:x image 1G", "./NAME"),
    ("-o data_file=image image 1G", "is the image or its base"),
    ("-o data_file= image 1G", "no name"), ("-o data_file=none/data image 1G", "No such file"),
  ]

  @Test(arguments: refusals) func `is refused where the options make no sense`(
    _ line: (options: String, text: String)
  ) throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M base"])
    let result = try bench.strata("create -q -f qcow2 \(line.options)")
    #expect(result.exitCode == 1)
    #expect(result.errors.contains(line.text), "\(result.errors)")
    #expect(!bench.exists("image"))
  }

  @Test func `maps as qemu-img does`() throws {
    for (raw, extended) in [("on", "off"), ("off", "off"), ("on", "on"), ("off", "on")] {
      let bench = try Workbench()
      try bench.make([
        "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=\(raw),extended_l2=\(extended)"
          + " image 1M",
        "qemu-io -c write_0_200k -c write_-z_64k_64k -c write_900k_4k -c write_-z_0_64k image",
        "qemu-io -c write_-z_0_4k -c write_-z_140k_6k -c write_1k_1k -c write_400k_3k image",
      ])
      for verb in ["map", "map --output=json", "info", "info --output=json"] {
        let theirs = try bench.run("qemu-img \(verb) image")
        #expect(try bench.strata("\(verb) image").output == theirs.output)
      }
    }
  }
}

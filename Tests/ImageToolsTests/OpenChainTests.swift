// SPDX-License-Identifier: Apache-2.0
//
// Opening chains: names, formats, loops, locks, and errors that say what to do.
// Source: reference/qcow2.md 4.7, 4.8; security.md 2.3.

import BlockTypes
import Foundation
import LinuxIO
import Qcow2
import Testing

@testable import ImageTools

@Suite struct `Opening a chain` {
  @Test func `resolves relative names from the folder of the image that records them`() throws {
    let bench = try Workbench()
    try bench.make([
      "mkdir below", "qemu-img create -q -f raw below/base.raw 1M",
      "qemu-img create -q -f qcow2 -b base.raw -F raw below/middle.qcow2",
      "qemu-img create -q -f qcow2 -b below/middle.qcow2 -F qcow2 top.qcow2",
    ])
    let layers = try OpenChain.open(
      path: bench.path("top.qcow2"), format: nil, access: .readWrite)
    #expect(layers.map(\.format) == [.qcow2, .qcow2, .raw])
    #expect(
      layers.map(\.path)
        == [
          bench.path("top.qcow2"), bench.path("below/middle.qcow2"), bench.path("below/base.raw"),
        ])
    #expect(layers.map(\.diskByteCount) == [1 << 20, 1 << 20, 1 << 20])
  }

  @Test func `takes a raw image only when it is called raw`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M image.raw"])
    let path = bench.path("image.raw")
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: path, format: nil, access: .readWrite)
    }
    #expect(error?.description.contains("-f raw") == true)
    let layers = try OpenChain.open(path: path, format: .raw, access: .readWrite)
    #expect(layers[0].format == .raw)
  }

  // CVE-2008-2004: a guest writes a qcow2 header into its raw disk.
  @Test func `believes the user, not the guest, that an image is raw`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image 1M"])
    let layers = try OpenChain.open(path: bench.path("image"), format: .raw, access: .readWrite)
    #expect(layers.count == 1)
    #expect(layers[0].header == nil)
  }

  @Test func `refuses an overlay that does not record its base's format`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M base.raw"])
    try bench.writeHeader("top.qcow2", backingFile: "base.raw", backingFormat: nil)
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("top.qcow2"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.wayOut?.contains("qemu-img rebase -u -b 'base.raw' -F") == true)
    #expect(try bench.strata("info top.qcow2").exitCode == 0)
    #expect(try bench.strata("info --backing-chain top.qcow2").exitCode == 0)
  }

  @Test(arguments: [
    "json:{\"driver\":\"raw\"}", "nbd:localhost:1", "nbd://localhost", "file:base.raw", "fat:/etc",
    "https://localhost/x", "host_device:/dev/null",
  ])
  func `never interprets a backing name as anything but a file's`(_ name: String) throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M base.raw"])
    try bench.writeHeader("top.qcow2", backingFile: name, backingFormat: "raw")
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("top.qcow2"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.kind == .unsupported)
    #expect(error?.cause.contains(name) == true)
  }

  @Test func `finds loops by file, whatever the names`() throws {
    let bench = try Workbench()
    try bench.writeHeader("a.qcow2", backingFile: "b.qcow2", backingFormat: "qcow2")
    try bench.writeHeader("b.qcow2", backingFile: "./link.qcow2", backingFormat: "qcow2")
    try bench.make(["ln -s a.qcow2 link.qcow2"])
    for access: ImageFile.Access in [.readOnly, .readWrite] {
      let error = #expect(throws: ImageFault.self) {
        try OpenChain.open(path: bench.path("a.qcow2"), format: .qcow2, access: access)
      }
      #expect(error?.cause.contains("loops") == true)
    }
  }

  @Test func `ends at 1024 layers`() throws {
    let bench = try Workbench()
    let most = OpenChain.depthMax
    try bench.make(["truncate -s 1M \(most + 1)"])
    for index in (1...most).reversed() {
      try bench.writeHeader(
        "\(index)", backingFile: "\(index + 1)", backingFormat: index == most ? "raw" : "qcow2")
    }
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(7), &limit)  // RLIMIT_NOFILE
    limit.rlim_cur = limit.rlim_max
    setrlimit(__rlimit_resource_t(7), &limit)
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("1"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.cause.contains("1024") == true)
    let layers = try OpenChain.open(path: bench.path("2"), format: .qcow2, access: .readOnly)
    #expect(layers.count == 1024)
  }

  @Test func `names the missing base, the overlay and the way out`() throws {
    let bench = try Workbench()
    try bench.writeHeader("top.qcow2", backingFile: "gone.raw", backingFormat: "raw")
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("top.qcow2"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.path == bench.path("top.qcow2"))
    #expect(error?.cause.contains(bench.path("gone.raw")) == true)
    #expect(error?.cause.contains("No such file") == true)
    #expect(error?.wayOut?.contains("rebase") == true)
  }

  @Test(arguments: ["/dev/zero", "/etc", "/proc/self/mem-is-not-there"])
  func `refuses what is no regular file or block device`(_ name: String) throws {
    #expect(throws: ImageFault.self) {
      try OpenChain.open(path: name, format: .raw, access: .readOnly)
    }
  }

  @Test func `does not wait for a FIFO`() throws {
    let bench = try Workbench()
    try bench.make(["mkfifo pipe"])
    #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("pipe"), format: .raw, access: .readOnly)
    }
  }

  @Test func `of an image that was cut names the table that is missing`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 1G", "truncate -s 196608 image.qcow2"])
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(path: bench.path("image.qcow2"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.kind == .truncated)
    #expect(error?.cause.contains("L1 table") == true)
  }
}

@Suite struct `Image locks` {
  @Test func `keep QEMU out of an image that we write`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    let layers = try OpenChain.open(
      path: bench.path("image.qcow2"), format: .qcow2, access: .readWrite)
    #expect(try bench.run("qemu-img info image.qcow2").exitCode == 1)
    #expect(try bench.run("qemu-img info -U image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-io -c quit image.qcow2").errors.contains("lock"))
    withExtendedLifetime(layers) {}
  }

  @Test func `let QEMU read, but not write, what we read`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    let layers = try OpenChain.open(
      path: bench.path("image.qcow2"), format: .qcow2, access: .readOnly)
    #expect(try bench.run("qemu-img info image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img resize image.qcow2 20M").exitCode == 1)
    withExtendedLifetime(layers) {}
  }

  @Test func `keep us out of an image that QEMU writes, with its name`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M"])
    let server = try bench.serve("qemu-nbd -f qcow2 image.qcow2")
    for access: ImageFile.Access in [.readOnly, .readWrite] {
      let error = #expect(throws: ImageFault.self) {
        try OpenChain.open(path: bench.path("image.qcow2"), format: .qcow2, access: access)
      }
      #expect(error?.kind == .inUse)
      #expect(error?.cause.contains("\(server.processID) (qemu-nbd)") == true)
    }
    #expect(try bench.strata("info -U image.qcow2").exitCode == 0)
    withExtendedLifetime(server) {}
  }

  @Test func `let many read and one write`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M image.raw"])
    let path = bench.path("image.raw")
    let first = try OpenChain.open(path: path, format: .raw, access: .readOnly)
    let second = try OpenChain.open(path: path, format: .raw, access: .readOnly)
    #expect(throws: ImageFault.self) {
      try OpenChain.open(path: path, format: .raw, access: .readWrite)
    }
    first[0].storage.file.unlock()
    second[0].storage.file.unlock()
    let writer = try OpenChain.open(path: path, format: .raw, access: .readWrite)
    #expect(throws: ImageFault.self) {
      try OpenChain.open(path: path, format: .raw, access: .readOnly)
    }
    withExtendedLifetime((first, second, writer)) {}
  }
}

extension Workbench {
  /// Writes an empty image with 512-byte clusters that names a base.
  func writeHeader(_ name: String, backingFile: String, backingFormat: String?) throws {
    let geometry = ClusterGeometry(clusterBits: 9, refcountOrder: 4)
    let layout = try NewImageLayout(geometry: geometry, diskByteCount: 1 << 15)
    var header = Header(version: 3, geometry: geometry, diskByteCount: 1 << 15)
    header.backingFile = backingFile
    header.backingFormat = backingFormat
    layout.apply(to: &header)
    let clusterByteCount = Int(geometry.clusterByteCount)
    try write(
      header.encode() + layout.refcountTableBytes() + layout.refcountBlockBytes()
        + [UInt8](repeating: 0, count: clusterByteCount), to: name)
  }
}

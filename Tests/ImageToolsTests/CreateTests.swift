// SPDX-License-Identifier: Apache-2.0
//
// `strata create`: what QEMU finds in the images, what is refused, and what a failure leaves.

import Foundation
import Testing

@testable import ImageTools

@Suite struct `A created image` {
  static let options = [
    "-f qcow2 image 1G", "-f qcow2 image 0", "-f qcow2 image 1000",
    "-f qcow2 -o cluster_size=512 image 10G", "-f qcow2 -o cluster_size=2M image 10T",
    "-f qcow2 -o compat=0.10 image 1G", "-f qcow2 -o refcount_bits=1,lazy_refcounts=on image 1G",
    "-f qcow2 -o compression_type=zstd image 1G",
    "-f qcow2 -o extended_l2=on image 1G", "-f qcow2 -o extended_l2=on,cluster_size=16k image 1G",
    "-f qcow2 -o refcount_bits=64,cluster_size=4k image 100G", "-f qcow2 -o compat=v3 image 1.5G",
  ]

  @Test(arguments: options) func `is what qemu-img makes with the same options`(
    _ line: String
  ) throws {
    let bench = try Workbench()
    let theirs = try bench.run("qemu-img create \(line)")
    let theirInfo = try bench.run("qemu-img info --output=json image").output
    try bench.prepare("rm image")
    let ours = try bench.strata("create \(line)")
    #expect(ours == theirs)
    let ourInfo = try bench.run("qemu-img info --output=json image").output
    let infos = try [theirInfo, ourInfo].map { text in
      var object = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
      object?["actual-size"] = nil
      return object.map { NSDictionary(dictionary: $0) }
    }
    #expect(infos[0] == infos[1])
    #expect(try bench.run("qemu-img check image").exitCode == 0)
    #expect(try bench.strata("check image").exitCode == 0)
  }

  @Test func `on a base takes its size and records its name and format`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 base.qcow2 3G"])
    let base = try bench.bytes(of: "base.qcow2")
    let ours = try bench.strata("create -f qcow2 -b base.qcow2 -F qcow2 image")
    try bench.prepare("mv image ours")
    let theirs = try bench.run("qemu-img create -f qcow2 -b base.qcow2 -F qcow2 image")
    #expect(ours == theirs)
    #expect(try bench.bytes(of: "ours") == bench.bytes(of: "image"))
    #expect(try bench.bytes(of: "base.qcow2") == base)
  }

  @Test func `takes milliseconds on a base of 8 TiB`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 8T base.raw"])
    let begin = ContinuousClock.now
    #expect(try bench.strata("create -f qcow2 -b base.raw -F raw image").exitCode == 0)
    #expect(begin.duration(to: .now) < .seconds(2))
  }

  @Test func `can be written by QEMU and stays clean`() throws {
    let bench = try Workbench()
    for clusterSize in ["512", "4k", "64k", "2M", "16k,extended_l2=on", "64k,extended_l2=on"] {
      try bench.strata("create -q -f qcow2 -o cluster_size=\(clusterSize) image 100M")
      try bench.make(["qemu-io -c write_0_20M -c write_77M_5M image"])
      #expect(try bench.run("qemu-img check image").exitCode == 0)
      try bench.expectSameCheck("image")
    }
  }

  @Test func `replaces an older one, but never one in use`() throws {
    let bench = try Workbench()
    try bench.strata("create -q -f qcow2 image 1G")
    #expect(try bench.strata("create -q -f qcow2 image 2G").exitCode == 0)
    let server = try bench.serve("qemu-nbd -f qcow2 image")
    let before = try bench.bytes(of: "image")
    let result = try bench.strata("create -q -f qcow2 image 3G")
    #expect(result.exitCode == 1)
    #expect(result.errors.contains("in use"))
    #expect(try bench.bytes(of: "image") == before)
    withExtendedLifetime(server) {}
  }
}

@Suite struct `Creating an image is refused` {
  static let lines: [(String, String)] = [
    ("-f qcow2 image", "size"), ("-f qcow2 -o foo=1 image 1G", "foo"),
    ("-f vmdk image 1G", "vmdk"), ("-f qcow2 image 7.99E999", "7.99E999"),
    ("-f qcow2 image 1e30", "1e30"), ("-f qcow2 -- image -1", "-1"),
    ("-f qcow2 image ٣G", "size"), ("-f qcow2 -o cluster_size=512 image 1T", "too large"),
    ("-f qcow2 -o cluster_size=1000 image 1G", "cluster_size"),
    ("-f qcow2 -o cluster_size=4M image 1G", "cluster_size"),
    ("-f qcow2 -o refcount_bits=3 image 1G", "refcount_bits"),
    ("-f qcow2 -o refcount_bits=128 image 1G", "refcount_bits"),
    ("-f qcow2 -o compat=0.9 image 1G", "compat"),
    ("-f qcow2 -o compat=0.10,lazy_refcounts=on image 1G", "lazy_refcounts"),
    ("-f qcow2 -o compat=0.10,refcount_bits=8 image 1G", "refcount_bits"),
    ("-f qcow2 -o extended_l2=on,compat=0.10 image 1G", "extended_l2"),
    ("-f qcow2 -o extended_l2=on,cluster_size=8k image 1G", "16 KiB"),
    ("-f qcow2 -o compression_type=lzma image 1G", "compression_type"),
    ("-f qcow2 -o compat=0.10,compression_type=zstd image 1G", "compression_type"),
    ("-f qcow2 -b base.raw image", "format"), ("-f qcow2 -b gone -F raw image", "No such file"),
    ("-f raw -b base.raw -F raw image 1G", "raw image"), ("-f qcow2 -F raw image 1G", "-b"),
    ("-f qcow2 -b nbd:x -F raw image", "nbd"), ("-f qcow2 -b base.raw -F qcow2 image", "magic"),
    ("-f qcow2 -b image -F raw image", "No such file"),
    ("-f qcow2 nowhere/image 1G", "No such file"),
  ]

  @Test(arguments: lines) func `with the reason, exit code 1 and no file left`(
    _ line: (arguments: String, text: String)
  ) throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M base.raw"])
    let result = try bench.strata("create \(line.arguments)")
    #expect(result.exitCode == 1)
    #expect(result.errors.hasPrefix("strata: "))
    #expect(result.errors.contains(line.text), "\(result.errors)")
    #expect(!bench.exists("image"))
  }

  @Test func `on itself`() throws {
    let bench = try Workbench()
    try bench.strata("create -q -f qcow2 image 1G")
    let before = try bench.bytes(of: "image")
    #expect(try bench.strata("create -f qcow2 -b image -F qcow2 image").errors.contains("its own"))
    let data = try bench.strata("create -f qcow2 -o data_file=image image 1G")
    #expect(data.errors.contains("the data file is the image or its base"), "\(data)")
    #expect(try bench.bytes(of: "image") == before)
  }

  @Test func `when the name of the base does not fit in the header`() throws {
    let bench = try Workbench()
    let name = String(repeating: "x", count: 200)
    try bench.make(["mkdir \(name)", "truncate -s 1M \(name)/\(name)"])
    let base = "\(name)/../\(name)/\(name)"
    let arguments = "create -f qcow2 -o cluster_size=512 -b \(base) -F raw image"
    #expect(try bench.strata(arguments).errors.contains("does not fit"))
    #expect(!bench.exists("image"))
  }
}

@Suite struct `Sizes` {
  @Test(arguments: [
    ("0", 0), ("512", 512), ("512b", 512), ("1k", 1024), ("1K", 1024), ("10G", 10 << 30),
    ("1.5G", 3 << 29), ("0.1k", 102), ("2T", 2 << 40), ("7E", 7 << 60),
    ("9223372036854775807", UInt64(Int64.max)),
  ])
  func `are read with their suffixes`(_ size: (text: String, byteCount: UInt64)) {
    #expect(ByteCountText.parse(size.text) == size.byteCount)
  }

  @Test(arguments: [
    "", "G", ".", ".5G", "1.", "1.G", "-1", "+1", "1e3", "0x10", "8E", "9223372036854775808",
    "99999999999999999999", "1 G", "1GG", "1.5", "٣", "1,5G", "7.99E999", "inf", "nan",
  ])
  func `that mean nothing are refused`(_ text: String) {
    #expect(ByteCountText.parse(text) == nil)
  }

  @Test(arguments: [
    (0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1024, "1 KiB"), (1536, "1.5 KiB"),
    (196_624, "192 KiB"), (12_849_152, "12.3 MiB"), (1 << 30, "1 GiB"),
    (3_221_225_472, "3 GiB"), (UInt64.max, "16 EiB"),
  ])
  func `are written with three digits`(_ size: (byteCount: UInt64, text: String)) {
    #expect(ByteCountText.describe(size.byteCount) == size.text)
  }
}

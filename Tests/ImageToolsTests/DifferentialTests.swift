// SPDX-License-Identifier: Apache-2.0
//
// `info`, `check` and `map` say what qemu-img says, byte for byte or key for key.

import Foundation
import Testing

/// The commands that make the images which the programs are compared on.
enum ComparedImages {
  static let all: [[String]] = geometries + features + chains

  private static let geometries: [[String]] = {
    var lists: [[String]] = []
    for clusterSize in ["512", "4k", "64k", "2M"] {
      for bits in [1, 16, 64] {
        let options = "cluster_size=\(clusterSize),refcount_bits=\(bits)"
        lists.append([
          "qemu-img create -q -f qcow2 -o \(options) image 64M",
          "qemu-io -c write_0_1M -c write_5M_100k -c write_-z_7M_1M -c discard_0_64k image",
          "qemu-io -c write_-z_-u_33M_300k image",
        ])
      }
    }
    return lists
  }()

  private static let features: [[String]] = [
    ["qemu-img create -q -f qcow2 image 0"],
    ["qemu-img create -q -f qcow2 -o lazy_refcounts=on image 1000"],
    ["qemu-img create -q -f qcow2 -o compat=0.10 image 10M", "qemu-io -c write_1M_3M image"],
    ["qemu-img create -q -f qcow2 -o preallocation=metadata image 3M"],
    [
      "qemu-img create -q -f qcow2 -o extended_l2=on image 64M",
      "qemu-io -c write_4k_2k -c write_-z_8k_2k -c write_128k_64k -c write_192k_3k image",
      "qemu-io -c write_-c_1M_64k -c write_-z_2M_200k -c discard_128k_64k image",
    ],
    [
      "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k image 64M",
      "qemu-io -c write_0_100k -c write_40M_512 -c write_41M_300k image",
      "qemu-img snapshot -c one image", "qemu-io -c write_1k_1k -c discard_41M_20k image",
    ],
    ["qemu-img create -q -f qcow2 -o extended_l2=on,preallocation=metadata image 3M"],
    [
      "qemu-img create -q -f qcow2 -o preallocation=metadata image 3M",
      "qemu-io -c write_-z_0_512k -c write_1M_300k image",
    ],
    [
      "qemu-img create -q -f qcow2 source 3M", "qemu-io -c write_0_1M source",
      "qemu-img convert -c -O qcow2 source image",
    ],
    [
      "qemu-img create -q -f qcow2 source 3M", "qemu-io -c write_0_1M source",
      "qemu-img convert -c -O qcow2 -o compression_type=zstd source image",
    ],
    [
      "qemu-img create -q -f qcow2 image 3M", "qemu-io -c write_0_1M image",
      "qemu-img snapshot -c one image", "qemu-io -c write_0_2M image",
    ],
    [
      "qemu-img create -q -f qcow2 image 3M", "qemu-img bitmap --add image b0",
      "qemu-io -c write_1M_100k image",
    ],
  ]

  private static let chains: [[String]] = [
    [
      "truncate -s 1000001 base", "qemu-io -f raw -c write_64k_64k base",
      "qemu-img create -q -f qcow2 -b base -F raw middle 2M", "qemu-io -c write_512k_100k middle",
      "qemu-img create -q -f qcow2 -o cluster_size=4k -b middle -F qcow2 image 3M",
      "qemu-io -c write_516k_4k -c write_-z_600k_20k -c write_2500k_1k image",
    ],
    [
      "truncate -s 4M base", "qemu-io -f raw -c write_0_4M base",
      "qemu-img create -q -f qcow2 -b base -F raw image 1M",
    ],
    [
      "truncate -s 1000448 base", "qemu-io -f raw -c write_64k_64k base",
      "qemu-img create -q -f qcow2 -o extended_l2=on -b base -F raw middle 2M",
      "qemu-io -c write_70k_3k -c write_-z_80k_5k -c write_980k_30k middle",
      "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=32k -b middle -F qcow2 image 3M",
      "qemu-io -c write_516k_4k -c write_-z_600k_20k -c write_2500k_1k image",
    ],
    [
      "truncate -s 1M base", "qemu-io -f raw -c write_0_1M base",
      "qemu-img create -q -f qcow2 -o extended_l2=on,preallocation=metadata -b base -F raw image",
    ],
    ["truncate -s 1000001 image", "qemu-io -f raw -c write_64k_64k image"],
  ]
}

extension Workbench {
  /// Makes an image; in `qemu-io` commands a `_` stands for a blank.
  func make(_ commands: [String]) throws {
    for command in commands {
      let words = command.split(separator: " ").map(String.init)
      let isIO = words[0] == "qemu-io"
      let result = try run(
        words.map { isIO ? $0.replacingOccurrences(of: "_", with: " ") : $0 })
      guard result.exitCode == 0 else { throw WorkbenchError("\(command): \(result.errors)") }
    }
  }
}

@Suite struct `Compared with qemu-img` {
  @Test(arguments: ComparedImages.all)
  func `info and map print the same bytes, and check the same keys`(
    _ commands: [String]
  ) throws {
    let bench = try Workbench()
    let name = "image"
    try bench.make(commands)
    let verbs = [
      "info", "info --output=json", "info --backing-chain", "info --backing-chain --output=json",
      "map", "map --output=json",
    ]
    for verb in verbs {
      let theirs = try bench.run("qemu-img \(verb) \(name)")
      let ours = try bench.strata("\(verb) \(name)")
      #expect(ours.output == theirs.output, "\(verb) after \(commands)")
      #expect(ours.exitCode == theirs.exitCode)
    }
    try bench.expectSameCheck(name)
  }

  @Test func `check counts leaks and corruptions alike`() throws {
    let bench = try Workbench()
    try bench.make([
      "qemu-img create -q -f qcow2 image.qcow2 10M", "qemu-io -c write_0_1M image.qcow2",
    ])
    let block = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 48))
    try bench.poke("image.qcow2", UInt16(0), at: block + 2 * 6)
    try bench.poke("image.qcow2", UInt16(2), at: block + 2 * 7)
    try bench.poke("image.qcow2", UInt16(1), at: block + 2 * 20)
    try bench.expectSameCheck("image.qcow2")
    #expect(try bench.strata("check image.qcow2").exitCode == 2)
  }

  @Test func `check of an image with leaks only exits with 3`() throws {
    let bench = try Workbench()
    try bench.make(["qemu-img create -q -f qcow2 image.qcow2 10M", "truncate -s 1M image.qcow2"])
    let block = try bench.word("image.qcow2", at: try bench.word("image.qcow2", at: 48))
    try bench.poke("image.qcow2", UInt16(1), at: block + 2 * 9)
    try bench.expectSameCheck("image.qcow2")
    #expect(try bench.strata("check image.qcow2").exitCode == 3)
    #expect(try bench.strata("check -r leaks image.qcow2").exitCode == 0)
    #expect(try bench.run("qemu-img check image.qcow2").exitCode == 0)
  }

  @Test func `check of a raw image exits with 63`() throws {
    let bench = try Workbench()
    try bench.make(["truncate -s 1M image.raw"])
    #expect(try bench.strata("check image.raw").exitCode == 63)
  }
}

extension Workbench {
  func expectSameCheck(_ name: String) throws {
    let theirs = try run("qemu-img check --output=json \(name)")
    let ours = try strata("check --output=json \(name)")
    #expect(ours.exitCode == theirs.exitCode)
    if theirs.exitCode == 63 { return }
    let values = try [ours, theirs].map {
      try JSONSerialization.jsonObject(with: Data($0.output.utf8)) as? NSDictionary
    }
    #expect(values[0] == values[1], "\(ours.output) \(theirs.output)")
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Images that take their space in advance, beside those of qemu-img.
// Source: qemu-img(1), "preallocation".

import Foundation
import Testing

@Suite struct `A preallocated image` {
  static let options = [
    "-f qcow2 -o preallocation=metadata image 9M",
    "-f qcow2 -o preallocation=falloc,cluster_size=4k image 9M",
    "-f qcow2 -o preallocation=full image 9M",
    "-f qcow2 -o preallocation=metadata,cluster_size=512,refcount_bits=1 image 3M",
    "-f qcow2 -o preallocation=metadata,compat=0.10,cluster_size=2M image 9M",
    "-f qcow2 -o preallocation=metadata,extended_l2=on image 1000k",
    "-f qcow2 -o preallocation=metadata,data_file=data image 9M",
    "-f qcow2 -o preallocation=full,data_file=data,data_file_raw=on image 9M",
    "-f qcow2 -o preallocation=metadata,data_file=data,extended_l2=on image 1000k",
    "-f qcow2 -o data_file=data,data_file_raw=on,extended_l2=on image 9M",
    "-f qcow2 -o preallocation=off image 9M", "-f raw -o preallocation=falloc image 9M",
    "-f raw -o preallocation=full image 9M", "-f qcow2 -o preallocation=metadata image 0",
    "-f qcow2 -o data_file=data,data_file_raw=on image 9M",
  ]

  @Test(arguments: options) func `is announced as qemu-img does, and as large`(
    line: String
  ) throws {
    let bench = try Workbench()
    let theirs = try bench.run("qemu-img create \(line)")
    let format = line.contains("raw image") || line.hasPrefix("-f raw") ? "raw" : "qcow2"
    func kinds() throws -> [String] {
      let text = try bench.run("qemu-img map -f \(format) --output=json image").output
      let rows = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] ?? []
      // The zero column asks the filesystem, which may know more of one file than of another.
      return rows.map { "\($0["present"] ?? "") \($0["data"] ?? "")" }
    }
    func occupied(_ name: String) throws -> Int {
      let text = try bench.run("stat -c %b \(name)").output
      return (Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0) * 512
    }
    let names = ["image", "data"].filter(bench.exists)
    let sizes = try names.map(occupied)
    let theirKinds = Set(try kinds())
    try bench.prepare("rm \(names.joined(separator: " "))")
    let ours = try bench.strata("create \(line)")
    #expect(ours == theirs)
    for (name, size) in zip(names, sizes) {
      let own = try occupied(name)
      let slack = line.contains("cluster_size=2M") ? 8 << 20 : 600 << 10
      #expect(abs(own - size) <= slack, "\(name): \(own) bytes, QEMU's has \(size)")
    }
    if format == "qcow2" {
      #expect(Set(try kinds()) == theirKinds)
      #expect(try bench.run("qemu-img check -q image").exitCode == 0)
      #expect(try bench.strata("check -q image").exitCode == 0)
    }
    let zeroes = try bench.run("qemu-img convert -f \(format) -O raw image disk")
    #expect(zeroes.exitCode == 0)
    #expect(try bench.bytes(of: "disk").allSatisfy { $0 == 0 })
  }

  static let refusals: [(options: String, text: String)] = [
    ("-f qcow2 -o preallocation=some image 1M", "off, metadata, falloc or full"),
    ("-f raw -o preallocation=metadata image 1M", "no tables"),
    ("-f qcow2 -o preallocation=metadata -b base -F raw image", "backing file"),
  ]

  @Test(arguments: refusals) func `is refused where that makes no sense`(
    line: (options: String, text: String)
  ) throws {
    let bench = try Workbench()
    try bench.prepare("truncate -s 1M base")
    let result = try bench.strata("create \(line.options)")
    #expect(result.exitCode == 1 && result.errors.contains(line.text), "\(result.errors)")
    #expect(!bench.exists("image"))
  }
}

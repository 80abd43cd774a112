// SPDX-License-Identifier: Apache-2.0
//
// What `strata convert` reads besides plain chains: encrypted images, data files, snapshots; with
// qemu-img as the judge. Source: qcow2.rst, "Full disk encryption header pointer", "Snapshots".

import Foundation
import Testing

@Suite struct `convert reads what qcow2 keeps in special ways` {
  @Test(arguments: supportedCiphers)
  func `encrypted images, with their key`(options: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.makeKey()
    try bench.createWithQEMU("image", options, size: "20M")
    try bench.io("image", "write_-P_7_64k_300k", "write_-P_9_19M_1M", "write_-z_100k_8k")
    try bench.prepare(
      "qemu-img convert -O raw --object secret,id=s,file=key --image-opts"
        + " driver=qcow2,encrypt.key-secret=s,file.filename=image judge")
    try bench.convert("-f qcow2 --key-file key image new -m 4")
    #expect(try bench.run("cmp judge new").exitCode == 0)
    try bench.expectRefused("-f qcow2 image other", "no key", target: "other")
  }

  @Test func `chains in which each image has a key of its own, or none`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.makeKey()
    try bench.write(Array("another".utf8), to: "key2")
    try bench.createWithQEMU("base", supportedCiphers[0])
    try bench.io("base", "write_-P_3_0_4M")
    let made = try bench.strata(
      "create -q -f qcow2 --key-file key2 -o encrypt.format=luks,encrypt.iter-time=10"
        + " -b base -F qcow2 image")
    #expect(made.exitCode == 0, "\(made.errors)")
    try bench.convert("-f qcow2 --key-file base=key --key-file image=key2 image new")
    #expect(try bench.bytes(of: "new").allSatisfy { $0 == 3 })
    try bench.expectRefused(
      "-f qcow2 --key-file base=key --key-file image=key2 --key-file none=key image other",
      "no encrypted image of the chain has this name", target: "other")
  }

  @Test(arguments: ["on", "off"], ["on", "off"])
  func `images that keep their data in another file`(raw: String, extended: String) throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=\(raw),extended_l2=\(extended)"
        + " image 4M")
    try bench.run(["qemu-io", "-c", "write -P 5 64k 300k", "-c", "write -z 100k 70k", "image"])
    try bench.prepare("qemu-img convert -f qcow2 -O raw image judge")
    try bench.convert("-f qcow2 image new")
    #expect(try bench.run("cmp judge new").exitCode == 0)
    try bench.expectRefused("image other", "-f qcow2", target: "other")
    try bench.expectRefused("-f qcow2 -O raw image data", "itself", target: "none")
  }

  @Test func `data files elsewhere when they are allowed`() throws {
    let bench = try Workbench()
    try bench.prepare("mkdir here there")
    let made = try bench.strata(
      "create -q -f qcow2 -o data_file=\(bench.path("there/data")) here/image 1M")
    #expect(made.exitCode == 0, "\(made.errors)")
    try bench.run(["qemu-io", "-c", "write -P 5 64k 300k", "here/image"])
    for verb in ["map here/image", "convert -f qcow2 here/image new"] {
      let refused = try bench.strata(verb)
      #expect(refused.exitCode == 1 && refused.errors.contains("--allow-data-file"), "\(verb)")
      let allowed = try bench.strata("\(verb) --allow-data-file there/data")
      #expect(allowed.exitCode == 0, "\(allowed.errors)")
    }
    #expect(try bench.areSame("here/image", "qcow2", "new", "raw"))
  }

  @Test func `internal snapshots, by id and by name, of the size that the disk had`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -O qcow2 source.raw image", "qemu-img snapshot -c one image",
      "qemu-img resize -q image +1M")
    try bench.run(["qemu-io", "-c", "write -P 5 0 3M", "image"])
    for name in ["1", "one"] {
      try bench.convert("-f qcow2 -l \(name) image new")
      #expect(try bench.run("cmp source.raw new").exitCode == 0)
    }
    try bench.expectRefused("-f qcow2 -l two image other", "no snapshot", target: "other")
    try bench.expectRefused("-f raw -l one image other", "no snapshots", target: "other")
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// `strata key` on images of ours and of QEMU: who can open them afterwards.
// Source: LUKS1 On-Disk Format Specification, "Operations on the master key"; strata(1).

import Foundation
import Testing

extension Workbench {
  /// An encrypted image with some data, its key in "key", and others in "key2" and "key3".
  fileprivate static func withKeys() throws -> Workbench {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.write(Array("second".utf8), to: "key2")
    try bench.write(Array("third".utf8), to: "key3")
    try bench.createEncrypted("image", size: "1M")
    try bench.io("image", "write_-P_7_0_64k")
    return bench
  }

  fileprivate func opens(_ key: String) throws -> Bool {
    do {
      try io("image", key: key, "read_-P_7_0_64k")
      return true
    } catch { return false }
  }

  fileprivate func slots() throws -> String {
    let text = try strata("key list image").output
    return text.split(separator: "\n").map { $0.hasSuffix("vacant") ? "-" : "x" }.joined()
  }
}

@Suite struct `strata key` {
  @Test func `adds keys that QEMU opens the image with, and removes them`() throws {
    let bench = try Workbench.withKeys()
    #expect(try bench.slots() == "x-------")
    let add = "key add --iter-time 10 --key-file key"
    #expect(
      try bench.strata("\(add) --new-key-file key2 image").output
        == "The new key has slot 1.\n")
    #expect(try bench.strata("\(add) --new-key-file key3 --slot 7 image").exitCode == 0)
    #expect(try bench.slots() == "xx-----x")
    for key in ["key", "key2", "key3"] { #expect(try bench.opens(key)) }
    #expect(try bench.strata("key remove --slot 0 --key-file key3 image").exitCode == 0)
    #expect(try bench.slots() == "-x-----x")
    #expect(try !bench.opens("key"))
    for key in ["key2", "key3"] { #expect(try bench.opens(key)) }
    #expect(try bench.strata("check image").exitCode == 0)
    for words in ["info", "info --output=json"] {
      #expect(try bench.strata("\(words) image") == bench.run("qemu-img \(words) image"))
    }
  }

  @Test func `destroys what a removed key opened`() throws {
    let bench = try Workbench.withKeys()
    _ = try bench.strata("key add --iter-time 10 --key-file key --new-key-file key2 image")
    let area = try bench.word("image", at: 120)
    let stripes = (area + 4_096)..<(area + 4_096 + 256_000)
    let before = try bench.bytes(of: "image")[stripes]
    #expect(try bench.strata("key remove --slot 0 --key-file key2 image").exitCode == 0)
    let after = try bench.bytes(of: "image")[stripes]
    let same = zip(before, after).count { $0 == $1 }
    #expect(same < 256_000 / 100)
  }

  @Test(arguments: [
    ("add --key-file key2 --new-key-file key3", "opens none"),
    ("add --key-file key --new-key-file key3 --slot 0", "key slot 0 is in use"),
    ("add --key-file key --new-key-file key3 --slot 8", "no key slot 8"),
    ("add --key-file key --new-key-file key3 --iter-time 0", "1...60000"),
    ("add --key-file key", "--new-key-file"), ("add --new-key-file key", "--key-file"),
    ("remove --slot 0 --key-file key", "the last one"),
    ("remove --slot 1 --key-file key", "key slot 1 is vacant"),
    ("remove --slot 0", "--key-file"),
  ])
  func `refuses what makes no sense, and changes nothing`(words: String, reason: String) throws {
    let bench = try Workbench.withKeys()
    let before = try bench.bytes(of: "image")
    let result = try bench.strata("key \(words) image")
    #expect(result.exitCode != 0)
    #expect(result.errors.contains(reason), "\(result.errors)")
    #expect(try bench.bytes(of: "image") == before)
  }

  @Test func `removes a slot only for who has a key that is left, or insists`() throws {
    let bench = try Workbench.withKeys()
    _ = try bench.strata("key add --iter-time 10 --key-file key --new-key-file key2 image")
    let refused = try bench.strata("key remove --slot 0 --key-file key image")
    #expect(refused.errors.contains("opens none of the slots that would be left"))
    #expect(try bench.opens("key"))
    #expect(try bench.strata("key remove --slot 0 --force image").exitCode == 0)
    #expect(try bench.strata("key remove --slot 1 --force image").exitCode == 0)
    #expect(try bench.slots() == "--------")
    #expect(
      try bench.strata("key add --key-file key2 --new-key-file key image").errors
        .contains("opens none of the 0 key slots"))
  }

  @Test func `takes an image of QEMU's, and none that is not encrypted`() throws {
    let bench = try Workbench.withKeys()
    try bench.createWithQEMU("image", supportedCiphers[4], size: "1M")
    try bench.io("image", "write_-P_7_0_64k")
    let add = "key add --iter-time 10 --key-file key --new-key-file key2"
    #expect(try bench.strata("\(add) image").exitCode == 0)
    #expect(try bench.opens("key2"))
    try bench.prepare("qemu-img create -q -f qcow2 plain 1M")
    #expect(try bench.strata("key list plain").errors.contains("not encrypted"))
  }
}

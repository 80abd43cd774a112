// SPDX-License-Identifier: Apache-2.0
//
// Encrypted images at rest: made by us and opened by QEMU's tools, made by them and looked at by
// us. Source: qcow2.rst, "Full disk encryption header pointer"; qemu-img(1), "encrypt.format".

import Foundation
import Testing

/// Options without the prefix, for every cipher that is supported.
let supportedCiphers = [
  "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
  "cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha1",
  "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha512",
  "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha256",
  "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha256",
  "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
  "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha256",
]

extension Workbench {
  /// A file whose bytes are the key "secret".
  func makeKey() throws { try write(Array("secret".utf8), to: "key") }

  static func prefixed(_ options: String) -> String {
    options.split(separator: ",").map { "encrypt.\($0)" }.joined(separator: ",")
  }

  /// Words that open an encrypted image with QEMU's tools.
  static func words(_ image: String, key: String = "key") -> String {
    "--object secret,id=s,file=\(key) --image-opts"
      + " driver=qcow2,encrypt.key-secret=s,file.filename=\(image)"
  }

  /// Makes an encrypted image with QEMU.
  func createWithQEMU(_ image: String, _ options: String, size: String = "4M") throws {
    try prepare(
      "qemu-img create -q --object secret,id=s,file=key -f qcow2 -o encrypt.format=luks,"
        + "encrypt.key-secret=s,encrypt.iter-time=50,\(Self.prefixed(options)) \(image) \(size)")
  }

  func createEncrypted(_ image: String, _ options: String = "", size: String = "4M") throws {
    let more = options.isEmpty ? "" : "," + Self.prefixed(options)
    let result = try strata(
      "create -q -f qcow2 --key-file key -o encrypt.format=luks,encrypt.iter-time=10\(more)"
        + " \(image) \(size)")
    guard result.exitCode == 0 else { throw WorkbenchError(result.errors) }
  }

  /// Runs qemu-io with commands in which a `_` stands for a blank.
  func io(_ image: String, key: String = "key", _ commands: String...) throws {
    let words = Self.words(image, key: key).split(separator: " ").map(String.init)
    let list = commands.flatMap { ["-c", $0.replacingOccurrences(of: "_", with: " ")] }
    let result = try run(["qemu-io"] + words + list)
    guard result.exitCode == 0, !result.output.contains("failed") else {
      throw WorkbenchError("\(commands): \(result.output)\(result.errors)")
    }
  }
}

@Suite struct `Encrypted images` {
  @Test(arguments: supportedCiphers)
  func `of ours are read, written and found right by QEMU`(options: String) throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.createEncrypted("image", options)
    try bench.io("image", "read_-P_0_0_4M", "write_-P_7_0_1M", "write_-P_9_3000000_5000")
    try bench.io("image", "read_-P_7_0_1M", "read_-P_9_3000000_5000")
    try bench.prepare("qemu-img check -q \(Workbench.words("image"))")
    #expect(try bench.strata("check image").exitCode == 0)
  }

  @Test(arguments: supportedCiphers)
  func `of QEMU are described and checked as QEMU does, without the key`(options: String) throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.createWithQEMU("image", options)
    try bench.io("image", "write_-P_7_0_1M")
    for words in ["info", "info --output=json"] {
      #expect(try bench.strata("\(words) image") == bench.run("qemu-img \(words) image"))
    }
    let check = try bench.strata("check image")
    #expect(check.exitCode == 0)
    #expect(
      try check.output == bench.run("qemu-img check \(Workbench.words("image"))").output)
    let map = try bench.strata("map --output=json image").output
    #expect(try map == bench.run("qemu-img map --output=json \(Workbench.words("image"))").output)
  }

  @Test(arguments: ["off", "on"], ["off", "on"])
  func `of QEMU with a data file are described, checked, mapped and converted as QEMU does`(
    raw: String, extended: String
  ) throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.write(Array("second".utf8), to: "key2")
    try bench.prepare(
      "qemu-img create -q --object secret,id=s,file=key -f qcow2 -o encrypt.format=luks,"
        + "encrypt.key-secret=s,encrypt.iter-time=50,data_file=\(bench.path("data")),"
        + "data_file_raw=\(raw),extended_l2=\(extended) image 4M")
    try bench.io(
      "image", "write_-z_0_4M", "write_-P_7_0_1M", "write_-P_9_3000000_5000", "write_-z_512k_64k",
      "write_-z_70k_4k")
    for words in ["info", "info --output=json"] {
      #expect(try bench.strata("\(words) image") == bench.run("qemu-img \(words) image"))
    }
    let words = Workbench.words("image")
    let check = try bench.strata("check image")
    #expect(check.exitCode == 0)
    #expect(try check.output == bench.run("qemu-img check \(words)").output)
    let map = try bench.strata("map --output=json image").output
    #expect(try map == bench.run("qemu-img map --output=json \(words)").output)
    // A key of ours opens it for QEMU, and for our own conversion.
    let added = try bench.strata(
      "key add --iter-time 10 --key-file key --new-key-file key2 image")
    #expect(added.exitCode == 0, "\(added.errors)")
    #expect(try bench.strata("key remove --slot 0 --key-file key2 image").exitCode == 0)
    try bench.io("image", key: "key2", "read_-P_7_0_64k", "read_-P_9_3000000_5000")
    let converted = try bench.strata("convert -f qcow2 -O raw --key-file key2 image new")
    #expect(converted.exitCode == 0, "\(converted.errors)")
    try bench.prepare(
      "qemu-img convert \(Workbench.words("image", key: "key2")) -O raw theirs", "cmp theirs new")
  }

  @Test(arguments: ["off", "on"], ["off", "on"])
  func `of ours with a data file read as zeroes for QEMU, which writes to them`(
    raw: String, extended: String
  ) throws {
    let bench = try Workbench()
    try bench.makeKey()
    let made = try bench.strata(
      "create -q -f qcow2 --key-file key -o encrypt.format=luks,encrypt.iter-time=10,"
        + "data_file=\(bench.path("data")),data_file_raw=\(raw),extended_l2=\(extended) image 1000k"
    )
    #expect(made.exitCode == 0, "\(made.errors)")
    try bench.io(
      "image", "read_-P_0_0_1000k", "write_-P_7_10k_100k", "write_-P_9_990k_10k", "write_-z_64k_9k")
    try bench.io("image", "read_-P_7_10k_54k", "read_-P_0_64k_9k", "read_-P_9_990k_10k")
    try bench.prepare("qemu-img check -q \(Workbench.words("image"))")
    #expect(try bench.strata("check image").exitCode == 0)
  }

  @Test func `keep their encryption header when leaks are repaired`() throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.createEncrypted("image")
    try bench.io("image", "write_-P_7_0_1M")
    // A count for a cluster that nobody uses.
    let block = try bench.word("image", at: try bench.word("image", at: 48))
    let unused = (try bench.bytes(of: "image").count + 65_535) / 65_536
    try bench.poke("image", UInt16(1), at: block + 2 * unused)
    // Counts behind the end of the file are nobody's business.
    try bench.prepare("truncate -s \((unused + 1) * 65_536) image")
    #expect(try bench.strata("check image").exitCode == 3)
    #expect(try bench.strata("check -r leaks image").exitCode == 0)
    try bench.io("image", "read_-P_7_0_1M")
  }

  @Test func `do not have their encryption header counted as leaked when all is rebuilt`() throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.createEncrypted("image")
    try bench.io("image", "write_-P_7_0_1M")
    // The counts of all clusters are lost.
    let block = try bench.word("image", at: try bench.word("image", at: 48))
    for index in 0..<64 { try bench.poke("image", UInt16(0), at: block + 2 * index) }
    #expect(try bench.strata("check -r all image").exitCode == 0)
    try bench.prepare("qemu-img check -q \(Workbench.words("image"))")
    try bench.io("image", "read_-P_7_0_1M")
  }

  @Test(arguments: [
    ("-o encrypt.format=luks", "needs a key"),
    ("-o encrypt.format=aes", "luks"), ("-o encryption=on", "encrypt.format=luks"),
    ("--key-file key", "encrypt.format=luks"),
    ("--key-file key -o encrypt.cipher-alg=aes-128", "encrypt.format=luks"),
    ("--key-file key -o encrypt.format=luks,encrypt.cipher-alg=serpent-256", "aes-128 or aes-256"),
    ("--key-file key -o encrypt.format=luks,encrypt.cipher-mode=ecb", "xts or cbc"),
    ("--key-file key -o encrypt.format=luks,encrypt.hash-alg=md5", "sha1, sha256"),
    ("--key-file key -o encrypt.format=luks,encrypt.ivgen-alg=essiv", "need each other"),
    ("--key-file key -o encrypt.format=luks,encrypt.iter-time=0", "milliseconds"),
    ("--key-file key -o encrypt.format=luks,encrypt.key-secret=s", "--key-file"),
    ("--key-file key -o encrypt.format=luks,encrypt.nonsense=s", "not known"),
    ("--key-file empty -o encrypt.format=luks", "the key is empty"),
    ("--key-file binary -o encrypt.format=luks", "UTF-8"),
    ("--key-file missing -o encrypt.format=luks", "cannot be read"),
  ])
  func `are refused with a reason, and no file is left`(options: String, reason: String) throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.write([], to: "empty")
    try bench.write([0x61, 0xff, 0x62], to: "binary")
    let result = try bench.strata("create -f qcow2 \(options) image 1M")
    #expect(result.exitCode == 1)
    #expect(result.errors.contains(reason), "\(result.errors)")
    #expect(!bench.exists("image"))
  }

  @Test func `with the old method AES are refused with the way out`() throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.prepare(
      "qemu-img create -q --object secret,id=s,file=key -f qcow2 -o"
        + " encrypt.format=aes,encrypt.key-secret=s image 1M")
    let refusal = "encrypted with the old AES method, which is broken and not supported; convert it"
    #expect(try bench.strata("map image").errors.contains(refusal))
    // Who references what needs no key.
    #expect(try bench.strata("check image").exitCode == 0)
    #expect(try bench.strata("info image").output.contains(refusal))
  }

  @Test func `tell in info what is wrong with their encryption header`() throws {
    let bench = try Workbench()
    try bench.makeKey()
    try bench.createEncrypted("image")
    let area = try bench.word("image", at: 120)
    try bench.poke("image", UInt32(0), at: area)
    let info = try bench.strata("info image")
    #expect(info.exitCode == 0)
    #expect(info.output.contains("encrypted: yes"))
    #expect(info.output.contains("the encryption header is not LUKS"))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// `strata convert`, with qemu-img as the judge of what it reads and of what it makes.

import Foundation
import Testing

extension Workbench {
  /// Whether two images have the same disk, as QEMU reads them.
  func areSame(_ first: String, _ firstFormat: String, _ second: String, _ secondFormat: String)
    throws -> Bool
  {
    let result = try run("qemu-img compare -f \(firstFormat) -F \(secondFormat) \(first) \(second)")
    return result.exitCode == 0
  }

  /// Converts with our command, which must succeed.
  func convert(_ words: String) throws {
    let result = try strata("convert -q \(words)")
    guard result.exitCode == 0 else { throw WorkbenchError("convert \(words): \(result.errors)") }
  }

  /// Our command fails, says `text`, and leaves nothing.
  func expectRefused(_ words: String, _ text: String, target: String = "new") throws {
    let result = try strata("convert \(words)")
    #expect(result.exitCode == 1, "\(words)")
    #expect(result.errors.contains(text), "\(words): \(result.errors)")
    #expect(!exists(target) && !exists("\(target).partial"), "\(words) left a file")
  }
}

@Suite struct `convert reads images of other programs` {
  @Test(arguments: ForeignCase.all)
  func `as qemu-img does`(made: ForeignCase) throws {
    let bench = try Workbench()
    try bench.makeForeign(made)
    try bench.convert("-f \(made.format) -O raw image new")
    try bench.prepare("qemu-img convert -f \(made.format) -O raw image judge")
    #expect(try bench.run("cmp judge new").exitCode == 0)
  }
}

@Suite struct `convert reads and writes qcow2` {
  @Test(arguments: [
    "", "-o cluster_size=512", "-o cluster_size=2M", "-o refcount_bits=1", "-o refcount_bits=64",
    "-o compat=0.10", "-o lazy_refcounts=on", "-S 0", "-S 64k", "-m 1", "-m 16", "-c",
    "-c -o cluster_size=512", "-c -o cluster_size=2M", "-c -o refcount_bits=1",
    "-c -o refcount_bits=2,cluster_size=2M", "-c -o compression_type=zstd", "-c -m 1",
    "-c -o compat=0.10", "-c -o compression_type=zstd,cluster_size=4k", "-o extended_l2=on",
    "-c -o extended_l2=on,cluster_size=16k",
  ])
  func `of any shape, which qemu-img finds right`(flags: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.convert("-f raw -O qcow2 \(flags) source.raw new")
    let check = try bench.run("qemu-img check -f qcow2 new")
    #expect(check.exitCode == 0, "\(check)")
    #expect(try bench.areSame("source.raw", "raw", "new", "qcow2"))
    #expect(try bench.strata("check new").exitCode == 0)
    // And back, with the reader of our own.
    try bench.convert("-f qcow2 -O raw new back")
    #expect(try bench.run("cmp source.raw back").exitCode == 0)
  }

  @Test(arguments: ["zlib", "zstd"])
  func `of compressed clusters that QEMU wrote`(type: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -c -O qcow2 -o compression_type=\(type) source.raw image")
    try bench.convert("-f qcow2 -O raw image back")
    #expect(try bench.run("cmp source.raw back").exitCode == 0)
  }

  @Test func `through a chain of layers of different lengths`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -c -O qcow2 source.raw base",
      "qemu-img create -q -f qcow2 -o cluster_size=4k -b base -F qcow2 middle 19M",
      "qemu-img create -q -f qcow2 -b middle -F qcow2 image 30M")
    for (write, name) in [("-z 9M 70k", "middle"), ("-P 5 100k 13k", "middle"), ("1M 1M", "image")]
    {
      try bench.run(["qemu-io", "-f", "qcow2", "-c", "write \(write)", name])
    }
    try bench.convert("-f qcow2 -O qcow2 image new")
    #expect(try bench.areSame("image", "qcow2", "new", "qcow2"))
    #expect(try bench.run("qemu-img check -f qcow2 new").exitCode == 0)
  }

  @Test func `of a size that is no multiple of a sector`() throws {
    let bench = try Workbench()
    try bench.prepare("truncate -s 1000001 image")
    try bench.run(["qemu-io", "-f", "raw", "-c", "write 999000 500", "image"])
    for target in ["raw", "qcow2"] {
      try bench.convert("-f raw -O \(target) image new")
      #expect(try bench.areSame("image", "raw", "new", target))
    }
  }

  @Test(arguments: ["raw", "qcow2"])
  func `of an empty disk`(target: String) throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 image 0")
    try bench.convert("-f qcow2 -O \(target) image new")
    #expect(try bench.run("qemu-img info -f \(target) new").exitCode == 0)
  }

  // The whole disk has 2^50 bytes; only what is there is read.
  @Test func `of a disk of a pebibyte that is nearly empty`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f qcow2 -o cluster_size=2M image 1P")
    try bench.run(["qemu-io", "-f", "qcow2", "-c", "write 1000T 1M", "image"])
    try bench.convert("-f qcow2 -O qcow2 -o cluster_size=2M image new")
    // The same map, but for where the data is in the file.
    let maps = try ["image", "new"].map { name in
      try bench.strata("map --output=json \(name)").output.replacing(/, "offset": \d+/, with: "")
    }
    #expect(maps[0] == maps[1] && maps[0].contains("\"data\": true"))
  }

  @Test func `with holes where the source has zeroes`() throws {
    let bench = try Workbench()
    try bench.prepare("truncate -s 64M image")
    try bench.run(["qemu-io", "-f", "raw", "-c", "write -P 0 0 64M", "-c", "write 8M 4k", "image"])
    try bench.convert("-f raw -O raw image new")
    let blocks = try bench.run("stat -c %b new").output
    #expect(Int(blocks.trimmingCharacters(in: .whitespacesAndNewlines)) == 8)
    try bench.convert("-f raw -O raw -S 0 image full")
    let all = try bench.run("stat -c %b full").output
    #expect(Int(all.trimmingCharacters(in: .whitespacesAndNewlines)) == 131_072)
  }
}

@Suite struct `convert over a base` {
  @Test(arguments: ["", "-c", "-o compat=0.10", "-o cluster_size=4k", "-o extended_l2=on"])
  func `writes only what differs`(flags: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -O qcow2 source.raw base",
      "qemu-img create -q -f qcow2 -b base -F qcow2 image 25M")
    for write in ["-P 1 2M 100k", "-z 0 64k", "-P 2 24M 1M"] {
      try bench.run(["qemu-io", "-f", "qcow2", "-c", "write \(write)", "image"])
    }
    try bench.convert("-f qcow2 -O qcow2 -B base -F qcow2 \(flags) image new")
    #expect(try bench.areSame("image", "qcow2", "new", "qcow2"))
    #expect(try bench.run("qemu-img check -f qcow2 new").exitCode == 0)
    let byteCount = try bench.bytes(of: "new").count
    #expect(byteCount < 3 << 20, "\(byteCount) bytes hold more than the difference")
  }
}

@Suite struct `a conversion that fails` {
  @Test func `says why and leaves nothing`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare("qemu-img convert -O qcow2 source.raw image")
    try bench.expectRefused("-O raw missing new", "No such file")
    try bench.expectRefused("-f vdi -O raw image new", "this is no VDI image")
    try bench.expectRefused("-f qcow3 -O raw image new", "the format 'qcow3' is not supported")
    try bench.expectRefused("-O vmdk image new", "the format 'vmdk' is not supported")
    try bench.expectRefused("-c -O raw image new", "no compressed clusters")
    try bench.expectRefused("-S 100 -O raw image new", "no value for -S")
    try bench.expectRefused("-O qcow2 -o size=1G image new", "that of its source")
    try bench.expectRefused("-O qcow2 -o nothing=1 image new", "is not known")
    try bench.expectRefused("-O qcow2 -B image image new", "format is not said")
    try bench.expectRefused("-O qcow2 -o data_file=new.raw image new", "these options")
    try bench.expectRefused("-O qcow2 -o encrypt.format=luks image new", "encrypted images")
  }

  @Test func `does not touch its source, nor a target that is in use`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare("qemu-img convert -O qcow2 source.raw image")
    let own = try bench.strata("convert -f qcow2 -O raw image image")
    #expect(own.exitCode == 1)
    #expect(own.errors.contains("to itself"), "\(own.errors)")
    #expect(try bench.areSame("source.raw", "raw", "image", "qcow2"))
    try bench.prepare("qemu-img create -q -f qcow2 used 1M")
    let server = try bench.serve("qemu-nbd -f qcow2 used")
    let used = try bench.strata("convert -f qcow2 -O raw image used")
    #expect(used.exitCode == 1)
    #expect(!bench.exists("used.partial"))
    withExtendedLifetime(server) {}
  }

  // The class of CVE-2008-2004 and CVE-2022-47951.
  @Test func `a format that was found lets an image name no other file`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "qemu-img create -q -f raw secret 1M",
      "qemu-img create -q -f qcow2 -b secret -F raw image")
    try bench.expectRefused("-O raw image new", "the image names another file")
    try bench.convert("-f qcow2 -O raw image new")
  }

  @Test(arguments: ["raw", "qcow2"])
  func `by a source that is cut leaves no target`(target: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -O vdi source.raw image", "truncate -s 3M image")
    try bench.expectRefused("-f vdi -O \(target) image new", "the file ends at byte")
  }

  @Test func `by damaged compressed data names the place`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    try bench.prepare(
      "qemu-img convert -O vmdk -o subformat=streamOptimized source.raw image")
    var bytes = try bench.bytes(of: "image")
    let grain = 65_536
    for index in (grain + 20)..<(grain + 60) { bytes[index] ^= 0x5a }
    try bench.write(bytes, to: "image")
    try bench.expectRefused("-f vmdk -O raw image new", "of the disk)")
  }

  // CVE-2022-0485: a failed read or write is never passed over.
  @Test(arguments: ["raw", "qcow2", "qcow2 -c"])
  func `by a full disk leaves no target`(target: String) throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    let script =
      "mount -t tmpfs -o size=300k none \(bench.path("small")) && "
      + "\(try Workbench.strataPath) convert -f raw -O \(target) \(bench.path("source.raw")) "
      + "\(bench.path("small"))/new; echo \"exit $?\"; ls -A \(bench.path("small")) | wc -l"
    try bench.prepare("mkdir small")
    let result = try bench.run(["unshare", "-rm", "sh", "-c", script])
    #expect(result.output.contains("exit 1\n0\n"), "\(result)")
    #expect(result.errors.contains("No space left"), "\(result.errors)")
  }

  // security.md 2.2, CVE-2022-0485: errors of reads that were under way at once.
  @Test(arguments: ["raw", "qcow2", "qcow2 -c -m 16"])
  func `by reads that fail now and then leaves no target`(target: String) throws {
    let bench = try Workbench()
    let command =
      "\(try Workbench.strataPath) convert -f raw -O \(target) "
      + "\"nbd+unix:///?socket=$unixsocket\" \(bench.path("new"))"
    let result = try bench.run([
      "nbdkit", "-U", "-", "--filter=error", "pattern", "64M", "error-pread-rate=50%", "--run",
      command,
    ])
    #expect(result.exitCode == 1, "\(result)")
    #expect(result.errors.contains("of the disk)"), "\(result.errors)")
    #expect(!bench.exists("new") && !bench.exists("new.partial"))
  }

  @Test func `by a leftover of one that was killed says what to do`() throws {
    let bench = try Workbench()
    try bench.prepare("qemu-img create -q -f raw image 1M", "touch new.partial")
    let result = try bench.strata("convert -f raw -O raw image new")
    #expect(result.exitCode == 1)
    #expect(result.errors.contains("another conversion is running"), "\(result.errors)")
    #expect(!bench.exists("new"))
  }
}

@Suite struct `damaged images of other programs` {
  // security.md 2.3: the limits of OpenStack, CVE-2015-5162; CVE-2014-0142, -0222, -0223.
  @Test(arguments: ForeignCase.all.filter { !$0.options.contains("Flat") })
  func `end with a reason, within a gibibyte`(made: ForeignCase) throws {
    let bench = try Workbench()
    try bench.makeForeign(made)
    let whole = try bench.bytes(of: "image")
    let seed = UInt64.random(in: 0...UInt64.max)
    var random = SeededGenerator(state: seed | 1)
    for round in 0..<3 {
      var bytes = whole
      for _ in 0..<4 {
        // Headers and tables are near the start; footers are at the end.
        let reaches = [512, 4096, 400_000, 4_300_000]
        let reach = min(bytes.count, reaches.randomElement(using: &random)!)
        let place = Int.random(in: 0..<reach, using: &random)
        let fromEnd = Int.random(in: 0..<8, using: &random) == 0
        let index = fromEnd ? bytes.count - 1 - place % min(2048, bytes.count) : place
        bytes[index] = [0, 0xff, 0x80, UInt8.random(in: 0...255, using: &random)]
          .randomElement(using: &random)!
      }
      if round == 2 { bytes.removeLast(Int.random(in: 0..<bytes.count, using: &random)) }
      try bench.write(bytes, to: "image")
      for verb in ["info -f \(made.format) image", "convert -f \(made.format) -O qcow2 image new"] {
        let result = try bench.run(
          ["prlimit", "--as=1073741824", "--cpu=20", try Workbench.strataPath]
            + verb.split(separator: " ").map(String.init))
        #expect(result.exitCode <= 1, "seed \(seed), round \(round), \(verb): \(result)")
        #expect(result.exitCode == 0 || result.errors.hasPrefix("strata: "), "\(result.errors)")
      }
      #expect(!bench.exists("new.partial"), "seed \(seed), round \(round)")
    }
  }
}

/// A generator whose numbers a seed tells: xorshift64*.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return state &* 2_685_821_657_736_338_717
  }
}

@Suite struct `convert tells` {
  @Test func `how far it is, as lines of JSON that never go back`() throws {
    let bench = try Workbench()
    try bench.makeForeignSource()
    let result = try bench.strata("convert -p --output json -O qcow2 source.raw new")
    let lines = try result.output.split(separator: "\n").map { line in
      try #require(
        try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any], "\(line)")
    }
    let progress = lines.compactMap { $0["progress"] as? Int }
    #expect(progress == progress.sorted() && progress.last == 100)
    #expect(lines.last?["source-format"] as? String == "raw")
    #expect(lines.last?["virtual-size"] as? Int == 21_495_808)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// `strata create`: makes an image. Options as those of qemu-img create.

import ArgumentParser
import ImageTools

struct Create: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Create an image, empty or on top of a base.")

  @Option(name: .short, help: "Format of the image: raw or qcow2.")
  var format = "raw"

  @Option(
    name: [.customShort("b")], help: "Backing file, relative to the image's folder; or an NBD URI.")
  var backingFile: String?

  @Option(name: [.customShort("F")], help: "Format of the backing file: raw or qcow2.")
  var backingFormat: String?

  @Option(
    name: .short,
    help: ArgumentHelp(
      "cluster_size=SIZE, compression_type=zlib|zstd, compat=1.1|0.10, data_file=PATH, "
        + "lazy_refcounts=on|off, extended_l2=on|off, encrypt.format=luks, …",
      valueName: "name=value,…"))
  var options: [String] = []

  @OptionGroup var key: KeyOptions

  @Flag(name: [.customShort("u")], help: "Do not open the backing file; the size must be said.")
  var unsafeBacking = false

  @Flag(name: .shortAndLong, help: "Print nothing.")
  var quiet = false

  @OptionGroup var named: AllowedFileOptions

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The image to create.")
  var file: String

  @Argument(help: "Size of the disk, such as 10G; the base's when left out.")
  var size: String?

  func run() throws {
    var create = CreateOptions()
    for list in options { try create.apply(list, path: file) }
    if let backingFile { create.backingFile = backingFile }
    if let backingFormat {
      create.backingFormat = try CreateOptions.format(backingFormat, path: file)
    }
    if let size { create.diskByteCount = try CreateOptions.byteCount(size, of: "size", path: file) }
    create.opensBackingFile = !unsafeBacking
    var reader = KeyReader()
    let secret = try key.source().map { try reader.read($0) }
    let (summary, note) = try remote.open { remote in
      (
        try ImageTools.Create.run(
          path: file, format: try CreateOptions.format(format, path: file), options: create,
          key: secret, allowed: named.allowed, remote: remote),
        try ImageTools.Create.baseNote(path: file, options: create, remote: remote)
      )
    }
    if quiet { return }
    print(summary)
    if let note { report("strata: \(note)") }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// `strata convert`: makes a new image from an image of any format. Options as those of
// qemu-img convert.

import ArgumentParser
import ImageTools

struct Convert: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make a new image from an image, also of another format.",
    discussion: """
      Reads raw, qcow2 (with its backing files), vmdk, vpc (VHD), vhdx, vdi, qcow (version 1) and \
      parallels; writes raw and qcow2. The new image gets its name when all of it is written and \
      durable; a conversion that fails leaves nothing.
      """)

  @Option(
    name: .short,
    help: "Format of the source. Found by its magic when left out: then it may name no other file.")
  var format: String?

  @Option(name: [.customShort("O")], help: "Format of the target: raw or qcow2.")
  var targetFormat = "raw"

  @Option(
    name: .short,
    help: ArgumentHelp("Options of a qcow2 target, as for create.", valueName: "name=value,…"))
  var options: [String] = []

  @Flag(name: [.customShort("c")], help: "Compress clusters where that makes them smaller.")
  var compresses = false

  @Option(
    name: [.customShort("B")],
    help: "Backing file of the target, relative to its folder: only what differs is written.")
  var backingFile: String?

  @Option(name: [.customShort("F")], help: "Format of the backing file: raw or qcow2.")
  var backingFormat: String?

  @Option(
    name: [.customShort("S")],
    help: "Zeroes of this length become holes; 0: everything is allocated.")
  var sparse = "4k"

  @Option(name: [.customShort("m")], help: "Pieces under way at once, 1 to 16.")
  var requests = 4

  @Flag(name: [.customShort("p"), .long], help: "Show how far it is.")
  var progress = false

  @Option(help: "human or json: how -p shows it and what is printed at the end.")
  var output = OutputFormat.human

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Read although it is in use.")
  var forceShare = false

  @Flag(name: .shortAndLong, help: "Print nothing.")
  var quiet = false

  @Option(
    name: [.customShort("l"), .long],
    help: ArgumentHelp("Read this internal snapshot of the source.", valueName: "id-or-name"))
  var snapshot: String?

  @OptionGroup var keys: ChainKeyOptions

  @OptionGroup var named: AllowedFileOptions

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The image to read.")
  var source: String

  @Argument(help: "The image to make.")
  var target: String

  func validate() throws {
    guard (1...ConvertOptions.threadCountMax).contains(requests) else {
      throw ValidationError("-m is a number from 1 to \(ConvertOptions.threadCountMax).")
    }
  }

  func run() throws {
    var convert = try convertOptions()
    let unfinished = UnfinishedFile()
    convert.unfinished = unfinished
    try StopSignals.remove(unfinished)
    let progress = quiet || !progress ? nil : ProgressLine(output)
    let report = try remote.open { remote in
      do {
        return try ImageTools.Convert.run(
          source: source, target: target, options: convert, remote: remote
        ) { progress?.show($0, of: $1) }
      } catch {
        progress?.end()
        throw error
      }
    }
    progress?.end()
    if quiet { return }
    switch output {
    case .human:
      let found = format == nil ? "The source's format is \(report.sourceFormat). " : ""
      print("\(found)\(target): \(report.diskByteCount) bytes of disk in \(targetFormat)")
    case .json:
      var json = JSONWriter(layout: .oneLine)
      json.beginObject()
      json.field("source-format", report.sourceFormat)
      json.field("virtual-size", report.diskByteCount)
      json.field("filename", target)
      json.field("format", targetFormat)
      if let allocated = report.allocatedByteCount { json.field("actual-size", allocated) }
      json.end()
      print(json.finish())
    }
  }

  private func convertOptions() throws -> ConvertOptions {
    var convert = ConvertOptions()
    convert.sourceFormat = try format.map { try SourceFormat(named: $0, path: source) }
    convert.targetFormat = try CreateOptions.format(targetFormat, path: target)
    for list in options { try convert.create.apply(list, path: target) }
    if let backingFile { convert.create.backingFile = backingFile }
    if let backingFormat {
      convert.create.backingFormat = try CreateOptions.format(backingFormat, path: target)
    }
    convert.compresses = compresses
    let sparseByteCount = try CreateOptions.byteCount(sparse, of: "-S", path: target)
    convert.sparseByteCount = Int(clamping: sparseByteCount)
    convert.threadCount = requests
    convert.takesLocks = !forceShare
    convert.allowed = named.allowed
    convert.snapshot = snapshot
    convert.keys = try keys.ring()
    return convert
  }
}

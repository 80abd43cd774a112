// SPDX-License-Identifier: Apache-2.0
//
// `strata commit`: writes what an overlay says into its base. Options as those of qemu-img commit.

import ArgumentParser
import Control
import ImageTools

struct Commit: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write what an overlay says into its base, and empty the overlay.",
    discussion: """
      Nobody may use the images meanwhile, and every other overlay on the base is worthless \
      afterwards. A base that is smaller grows. The overlay is emptied when the base is durable, \
      so a commit that fails or is cut off loses nothing: say it again.
      """)

  @Option(name: .short, help: "Format of the overlay; found by its magic when left out.")
  var format: String?

  @Option(
    name: .short,
    help: "Commit to this image of the chain, further down; the overlay stays as it is.")
  var base: String?

  @Flag(name: .short, help: "Do not empty the overlay.")
  var dropNothing = false

  @Flag(name: [.customShort("p"), .long], help: "Show how far it is.")
  var progress = false

  @Option(help: "human or json: how -p shows it and what is printed at the end.")
  var output = OutputFormat.human

  @Flag(name: .shortAndLong, help: "Print nothing.")
  var quiet = false

  @OptionGroup var keys: ChainKeyOptions

  @OptionGroup var named: AllowedFileOptions

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The overlay.")
  var file: String

  func run() throws {
    var options = Control.Commit.Options()
    options.format = try format.map { try CreateOptions.format($0, path: file) }
    options.base = base
    options.keepsOverlay = dropNothing
    options.allowed = named.allowed
    options.keys = try keys.ring()
    let shown = quiet || !progress ? nil : ProgressLine(output)
    options.progress = { shown?.show($0, of: $1) }
    defer { shown?.end() }
    let report = try remote.open { remote in
      try Control.Commit.run(path: file, options: options, remote: remote)
    }
    if quiet { return }
    switch output {
    case .human:
      shown?.end()
      print("Image committed.")
    case .json:
      var json = JSONWriter(layout: .oneLine)
      json.beginObject()
      json.field("filename", file)
      json.field("base", report.basePath)
      json.field("written-bytes", report.writtenByteCount)
      json.field("emptied", report.isEmptied)
      json.end()
      print(json.finish())
    }
  }
}

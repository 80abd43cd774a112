// SPDX-License-Identifier: Apache-2.0
//
// `strata map`: tells where each part of a disk comes from. Output as that of qemu-img map.

import ArgumentParser
import ImageTools

struct Map: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show which file holds which part of a disk.")

  @Option(name: .short, help: "Format of the image; found by its magic when left out.")
  var format: String?

  @Option(help: "human or json.")
  var output = OutputFormat.human

  @Option(
    name: [.customShort("s"), .customLong("start-offset")], help: "Where to begin, such as 1G.")
  var startOffset: String?

  @Option(name: [.customShort("l"), .customLong("max-length")], help: "How far to go.")
  var maxLength: String?

  @Option(
    help: ArgumentHelp("Map this internal snapshot of the image.", valueName: "id-or-name"))
  var snapshot: String?

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @OptionGroup var named: AllowedFileOptions

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The image.")
  var file: String

  func run() throws {
    let start = try startOffset.map {
      try CreateOptions.byteCount($0, of: "--start-offset", path: file)
    }
    let length = try maxLength.map {
      try CreateOptions.byteCount($0, of: "--max-length", path: file)
    }
    let isHuman = output == .human
    var count = 0
    try remote.open { remote in
      try show(start: start ?? 0, length, remote, isHuman: isHuman, count: &count)
    }
    if isHuman && count == 0 { print(MapExtent.humanTitle) }
    // An empty disk has one empty extent there.
    if !isHuman {
      let empty = MapExtent(
        start: start ?? 0, byteCount: 0, depth: 0, isPresent: false, isZero: false, isData: false)
      print(count == 0 ? "[\(empty.jsonText)]" : "]")
    }
  }

  private func show(
    start: UInt64, _ length: UInt64?, _ remote: any RemoteOpener, isHuman: Bool,
    count: inout Int
  ) throws {
    let said = try format.map { try SourceFormat(named: $0, path: file) }
    func show(_ extent: MapExtent, _ path: String) throws(ImageFault) {
      if isHuman {
        if count == 0 { print(MapExtent.humanTitle) }
        if extent.isData && extent.hostOffset == nil {
          throw ImageFault(
            path, "it holds compressed or encrypted clusters, which have no offset to show",
            wayOut: "use --output=json")
        }
        if let row = extent.humanRow(path: path) { print(row) }
      } else {
        print(count == 0 ? "[" : ",\n", extent.jsonText, separator: "", terminator: "")
      }
      count += 1
    }
    if let foreign = try SourceFormat.foreign(said: said, path: file, remote: remote) {
      return try ImageTools.Map.run(
        path: file, foreign: foreign, wasSaid: said != nil, takesLocks: !forceShare, start: start,
        byteCountMax: length, allowed: named.allowed, extent: show)
    }
    try ImageTools.Map.run(
      path: file, format: said?.own, takesLocks: !forceShare, start: start, byteCountMax: length,
      snapshot: snapshot, allowed: named.allowed, remote: remote, extent: show)
  }
}

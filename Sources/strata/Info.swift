// SPDX-License-Identifier: Apache-2.0
//
// `strata info`: tells what an image is. Opens exactly the files that the user asks for.

import ArgumentParser
import ImageTools

struct Info: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Describe an image, or a whole backing chain.")

  @Option(name: .short, help: "Format of the image; found by its magic when left out.")
  var format: String?

  @Option(help: "human or json.")
  var output = OutputFormat.human

  @Flag(name: .customLong("backing-chain"), help: "Describe the backing files too.")
  var backingChain = false

  @Option(
    help: ArgumentHelp("Describe the image at this internal snapshot.", valueName: "id-or-name"))
  var snapshot: String?

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The image.")
  var file: String

  func run() throws {
    let chain = try remote.open { remote in
      try ImageInfo.list(
        path: file, format: try format.map { try CreateOptions.format($0, path: file) },
        includesBackingChain: backingChain, takesLocks: !forceShare, snapshot: snapshot,
        remote: remote)
    }
    switch output {
    case .human: print(chain.map(\.humanText).joined(separator: "\n"), terminator: "")
    case .json: print(backingChain ? ImageInfo.jsonText(of: chain) : chain[0].jsonText)
    }
  }
}

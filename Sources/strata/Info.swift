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

  @OptionGroup var named: AllowedBaseOptions

  @OptionGroup var remote: RemoteOptions

  @Argument(help: "The image.")
  var file: String

  func run() throws {
    let said = try format.map { try SourceFormat(named: $0, path: file) }
    let chain = try remote.open { remote in
      if let foreign = try SourceFormat.foreign(said: said, path: file, remote: remote) {
        let info = try ForeignInfo(path: file, format: foreign, takesLocks: !forceShare)
        switch output {
        case .human: print(info.humanText, terminator: "")
        case .json: print(backingChain ? "[\\(info.jsonText)]" : info.jsonText)
        }
        return [ImageInfo]()
      }
      return try ImageInfo.list(
        path: file, format: said?.own, includesBackingChain: backingChain,
        takesLocks: !forceShare, snapshot: snapshot, allowed: named.allowed, remote: remote)
    }
    if chain.isEmpty { return }
    switch output {
    case .human: print(chain.map(\.humanText).joined(separator: "\n"), terminator: "")
    case .json: print(backingChain ? ImageInfo.jsonText(of: chain) : chain[0].jsonText)
    }
  }
}

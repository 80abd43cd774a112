// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd info` and `strata nbd list`: what an export is, and which there are.

import ArgumentParser
import NBDClient

struct NBDInfo: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Describe an export.")

  @Flag(help: "Print JSON, with the keys of nbdinfo.")
  var json = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "The export.")
  var uri: String

  func run() throws {
    let uri = try parseURI(uri)
    let options = connect.options(contexts: .all)
    let json = json
    try runToEnd(about: uri) {
      let connection = try await NBDConnection.connect(uri, options)
      let session = connection.session
      var export = session.export
      // The server may have a name for its default export; the user's is the empty one.
      export.name = uri.exportName
      let text = ExportText(
        uri: uri, mode: session.mode, isEncrypted: session.isEncrypted, exports: [export])
      json ? print(text.json) : print(text.human, terminator: "")
      try await connection.disconnect()
    }
  }
}

struct NBDList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the exports of a server.",
    discussion: "The export's name in the URI has no effect.")

  @Flag(help: "Print JSON, with the keys of nbdinfo.")
  var json = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "The server.")
  var uri: String

  func run() throws {
    let uri = try parseURI(uri)
    let options = connect.options(contexts: .none)
    let json = json
    try runToEnd(about: uri) {
      let list = try await NBDConnection.list(uri, options)
      let text = ExportText(
        uri: uri, mode: list.mode, isEncrypted: list.isEncrypted, exports: list.exports)
      json ? print(text.json) : print(text.human, terminator: "")
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad and their defaults. tools/man/stratad.8 says the same in prose.

import ArgumentParser
import Control

struct StratadCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stratad",
    abstract: "Serve disk images to virtual machines over NBD.",
    discussion: """
      Opens IMAGE and its backing files, or those of several exports, listens, gives up all \
      privileges, and serves until SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 on \
      failure, 2 for wrong options.
      """)

  @Argument(help: "The image to serve: a file or an NBD URI.")
  var image: String?

  @Option(
    help: ArgumentHelp("The name of IMAGE's export. (default: the file's)", valueName: "name"))
  var exportName: String?

  @Option(
    help: ArgumentHelp(
      "Serve another image, with options of its own. May be repeated.",
      valueName: "name=image[,option...]"))
  var export: [String] = []

  @Option(help: ArgumentHelp("Read options and exports from a file.", valueName: "path"))
  var config: String?

  @OptionGroup(title: "Options of exports") var exportOptions: ExportOptions
  @OptionGroup(title: "Addresses") var addresses: AddressOptions
  @OptionGroup(title: "TLS") var tls: TLSOptions

  @Flag(help: "Let clients in without any negotiation, for those that know no other way.")
  var oldstyle = false

  @Flag(help: "Do not tell clients the names of the exports.")
  var hideExports = false

  @Option(help: ArgumentHelp("Time a client has to negotiate.", valueName: "seconds"))
  var handshakeTimeout = 10

  @Option(help: ArgumentHelp("Clients at once; others wait.", valueName: "count"))
  var maxConnections = 100

  @Option(
    help: ArgumentHelp(
      "Clients of one user or address at once; others are refused. (default: --max-connections)",
      valueName: "count"))
  var maxConnectionsPerPeer: Int?

  @Option(
    help: ArgumentHelp(
      "User to become. (default when started as root: strata, else nobody)",
      valueName: "user[:group]"))
  var user: String?

  @Option(help: ArgumentHelp("Write 'ready' to this descriptor when serving.", valueName: "number"))
  var readyFd: Int32?

  @Option(help: ArgumentHelp("Write the process's number to a file.", valueName: "path"))
  var pidfile: String?

  @Flag(help: "Go into the background, and return when the export is ready.")
  var fork = false

  @Flag(help: "Print the -drive option for QEMU when the export is ready.")
  var printDrive = false

  func validate() throws {
    guard image == nil else { return }
    if exportOptions.format != nil { throw StratadCommand.needsImage("--format") }
    if exportOptions.description != nil { throw StratadCommand.needsImage("--description") }
    if exportName != nil { throw StratadCommand.needsImage("--export-name") }
  }

  private static func needsImage(_ option: String) -> ValidationError {
    ValidationError("\(option) is about one image: name it, or say it in --export")
  }

  /// Reads the command line, and the configuration file that it names: where both say something,
  /// the command line counts.
  ///
  /// - Throws: `ControlError` about the file, else what ArgumentParser finds wrong.
  static func config(_ arguments: [String]) throws -> ServerConfig {
    let command = try parse(arguments)
    guard let path = command.config else { return try command.serverConfig([]) }
    let file = try ConfiguredOptions(path: path)
    return try parse(file.server + arguments).serverConfig(file.exports)
  }

  /// What the user said, in the words of Control.
  private func serverConfig(_ configured: [NamedExport]) throws -> ServerConfig {
    guard image != nil || !export.isEmpty || !configured.isEmpty else {
      throw ValidationError("There is no image to serve: name one, or say --export NAME=IMAGE.")
    }
    var exports: [ExportConfig] = []
    if let image {
      exports.append(try exportOptions.config(image: image, name: exportName, common: nil))
    }
    for named in try configured + export.map(NamedExport.init(parsing:)) {
      exports.append(
        try named.options.config(image: named.image, name: named.name, common: exportOptions))
    }
    var config = ServerConfig(
      exports: exports, connectionsMax: maxConnections,
      connectionsPerPeerMax: maxConnectionsPerPeer ?? maxConnections,
      handshakeSecondsMax: handshakeTimeout, addresses: try addresses.config())
    config.speaksOldstyle = oldstyle
    config.listsExports = !hideExports
    config.tls = tls.config
    config.user = user
    config.readyDescriptor = readyFd
    config.pidFilePath = pidfile
    config.runsInBackground = fork
    config.printsDrive = printDrive
    return config
  }
}

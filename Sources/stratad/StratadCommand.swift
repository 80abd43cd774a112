// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad and their defaults. tools/man/stratad.8 says the same in prose.

import ArgumentParser
import BlockTypes
import Control
import DataPlane
import ImageTools

struct StratadCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stratad",
    abstract: "Serve a disk image to virtual machines over NBD.",
    discussion: """
      Opens IMAGE and its backing files, listens, gives up all privileges, and serves until \
      SIGTERM or SIGINT. Exit status: 0 after a clean stop, 1 on failure, 2 for wrong options.
      """)

  enum Engine: String, ExpressibleByArgument, CaseIterable { case native, sync }

  @Argument(help: "The image to serve.")
  var image: String

  @Option(
    name: [.customShort("f"), .long],
    help: "The image's format: raw or qcow2. Without it only a qcow2 image is recognised.")
  var format: ImageFormat?

  @Flag(name: [.customShort("r"), .long], help: "Refuse writes, and open the image for reading.")
  var readOnly = false

  @Option(help: "How files are read and written: native (Linux AIO with O_DIRECT) or sync.")
  var aio: Engine = .native

  @Option(help: ArgumentHelp("Listen on a UNIX socket.", valueName: "path"))
  var socket: String?

  @Option(help: ArgumentHelp("Access mode of the socket, in octal.", valueName: "mode"))
  var socketMode = "0600"

  @Option(help: ArgumentHelp("Owner of the socket.", valueName: "user[:group]"))
  var socketOwner: String?

  @Option(
    help: ArgumentHelp(
      "Listen on a UNIX socket for 'strata status', 'clients', 'kick', 'resize' and 'bitmap'.",
      valueName: "path"))
  var control: String?

  @Option(help: ArgumentHelp("Listen on TCP; port 0: any free one.", valueName: "host:port"))
  var tcp: String?

  @Flag(
    name: .customLong("tcp-without-tls"),
    help: ArgumentHelp(
      "Allow --tcp beyond loopback without --tls required: anybody on the way can read and change"
        + " the disk."))
  var tcpWithoutTLS = false

  @OptionGroup var tls: TLSOptions

  @Option(help: ArgumentHelp("The name of the export. (default: the file's)", valueName: "name"))
  var exportName: String?

  @Option(help: ArgumentHelp("A text about the export for clients.", valueName: "text"))
  var description = ""

  @Flag(help: "Let clients in without any negotiation, for those that know no other way.")
  var oldstyle = false

  @Option(
    help: ArgumentHelp("Smallest request: 1, or a power of 2 from 512.", valueName: "bytes"))
  var blockSize = "1"

  @Option(
    help: ArgumentHelp(
      "Record what is written in a dirty bitmap; may be repeated.",
      valueName: "name[:granularity]"))
  var bitmap: [String] = []

  @Flag(help: "Let clients make the disk larger (NBD_CMD_RESIZE).")
  var clientResize = false

  @Option(help: ArgumentHelp("Memory for the image's tables.", valueName: "bytes"))
  var metadataCache = "32M"

  @Option(
    help: ArgumentHelp(
      "Look for the next request this long before sleeping; 50 suits a machine that is not busy.",
      valueName: "microseconds"))
  var poll = 0

  @Option(help: ArgumentHelp("Time a client has to negotiate.", valueName: "seconds"))
  var handshakeTimeout = 10

  @Option(help: ArgumentHelp("Clients at once; others wait.", valueName: "count"))
  var maxConnections = 100

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

  /// What the user said, in the words of Control.
  func config() throws -> ExportConfig {
    var config = ExportConfig(
      imagePath: image, format: format, isReadOnly: readOnly,
      engine: aio == .native ? .aio : .sync, exportName: exportName, description: description,
      minimumBlockByteCount: try byteCount(blockSize, "--block-size"),
      metadataCacheByteCount: try byteCount(metadataCache, "--metadata-cache"),
      pollMicroseconds: poll, handshakeSecondsMax: handshakeTimeout,
      connectionsMax: maxConnections, socketPath: socket,
      socketMode: try mode(), socketOwner: socketOwner, controlPath: control,
      tcpEndpoint: try tcpEndpoint(),
      allowsTCPWithoutTLS: tcpWithoutTLS, user: user, readyDescriptor: readyFd,
      pidFilePath: pidfile, runsInBackground: fork, printsDrive: printDrive)
    config.speaksOldstyle = oldstyle
    config.clientsMayResize = clientResize
    config.bitmaps = try bitmap.map(bitmapConfig)
    config.tls = tls.config
    return config
  }

  private func byteCount(_ text: String, _ option: String) throws -> UInt64 {
    guard let value = ByteCountText.parse(text) else {
      throw ValidationError("\(option): '\(text)' is no size; write 512, 64k or 32M")
    }
    return value
  }

  private func bitmapConfig(_ text: String) throws -> BitmapConfig {
    guard let bitmap = BitmapConfig(parsing: text) else {
      throw ValidationError(
        "--bitmap: '\(text)' is not NAME[:GRANULARITY]; write backup or backup:64k")
    }
    return bitmap
  }

  private func mode() throws -> UInt32 {
    guard let value = UInt32(socketMode, radix: 8), value <= 0o777 else {
      throw ValidationError("--socket-mode: '\(socketMode)' is no octal mode; write 0600 or 0660")
    }
    return value
  }

  private func tcpEndpoint() throws -> TCPEndpoint? {
    guard let tcp else { return nil }
    guard let endpoint = TCPEndpoint(parsing: tcp) else {
      throw ValidationError("--tcp: '\(tcp)' is not HOST:PORT; write 127.0.0.1:10809")
    }
    return endpoint
  }
}

extension ImageFormat: ExpressibleByArgument {}

// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad about where clients connect. tools/man/stratad.8 says the same in prose.

import ArgumentParser
import Control

struct AddressOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Listen on a UNIX socket; @NAME: an abstract one. May be repeated.", valueName: "path"))
  var socket: [String] = []

  @Option(help: ArgumentHelp("Access mode of the socket, in octal.", valueName: "mode"))
  var socketMode = "0600"

  @Option(help: ArgumentHelp("Owner of the socket.", valueName: "user[:group]"))
  var socketOwner: String?

  @Option(
    help: ArgumentHelp(
      "Listen on a UNIX socket for 'strata status' and its sisters.", valueName: "path"))
  var control: String?

  @Option(
    help: ArgumentHelp(
      "Listen on TCP; port 0: any free one. May be repeated.", valueName: "host:port"))
  var tcp: [String] = []

  @Flag(
    name: .customLong("tcp-without-tls"),
    help: ArgumentHelp(
      "Allow --tcp beyond loopback without --tls required: anybody on the way can read and change"
        + " the disk."))
  var tcpWithoutTLS = false

  @Option(
    help: ArgumentHelp(
      "Listen on a port for virtual machines of this host. May be repeated.", valueName: "port"))
  var vsock: [UInt32] = []

  @Option(
    help: ArgumentHelp(
      "Listen where this NBD URI leads. May be repeated.", valueName: "uri"))
  var listen: [String] = []

  @Option(
    help: ArgumentHelp(
      "Take clients from an inherited listening socket. May be repeated.", valueName: "number"))
  var fd: [Int32] = []

  func config() throws -> AddressConfig {
    guard let mode = UInt32(socketMode, radix: 8), mode <= 0o777 else {
      throw ValidationError("--socket-mode: '\(socketMode)' is no octal mode; write 0600 or 0660")
    }
    var config = AddressConfig(socketMode: mode)
    config.socketPaths = socket
    config.socketOwner = socketOwner
    config.controlPath = control
    config.tcpEndpoints = try tcp.map { text in
      guard let endpoint = TCPEndpoint(parsing: text) else {
        throw ValidationError("--tcp: '\(text)' is not HOST:PORT; write 127.0.0.1:10809")
      }
      return endpoint
    }
    config.allowsTCPWithoutTLS = tcpWithoutTLS
    config.vsockPorts = vsock
    config.descriptors = fd
    for text in listen { try config.add(uri: text) }
    return config
  }
}

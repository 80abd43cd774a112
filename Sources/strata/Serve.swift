// SPDX-License-Identifier: Apache-2.0
//
// `strata serve`: becomes stratad, with the same options and the line for QEMU printed.

import ArgumentParser
import Control
import LinuxIO

struct Serve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Serve an image to virtual machines (runs stratad in the foreground).",
    usage: "strata serve <image> [--socket <path>] [--tcp <host:port>] [options of stratad]",
    discussion: """
      Prints the -drive option for QEMU when the export is ready, and serves until SIGTERM or \
      SIGINT. It takes every option of stratad; see 'stratad --help'.

        strata serve vm1.qcow2 --socket /run/vm1.sock
      """)

  @Argument(parsing: .captureForPassthrough, help: "The image, and options of stratad.")
  var arguments: [String] = []

  func run() throws {
    if arguments.contains(where: { $0 == "--help" || $0 == "-h" }) {
      throw CleanExit.helpRequest(self)
    }
    do throws(SystemError) {
      try ProgramLauncher.become("stratad", arguments: ["--print-drive"] + arguments)
    } catch {
      let error = ControlError(
        "stratad", error, wayOut: "install it beside strata, or in a folder of PATH")
      try TextOutput.standardError.writeLine("strata: \(error)")
      throw ExitCode(1)
    }
  }
}

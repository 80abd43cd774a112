// SPDX-License-Identifier: Apache-2.0
//
// `strata kick`: tells a running stratad to end a client.

import ArgumentParser
import Control

struct Kick: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "End one client of a running daemon.",
    discussion: """
      What was answered stays answered; requests in flight are finished on the disk, and their \
      answers are dropped. The client may connect again.
      """)

  @OptionGroup var daemon: ControlOptions

  @Argument(help: "The client's number, as 'strata clients' shows it.")
  var client: UInt64

  func run() throws {
    guard client <= UInt64(Int64.max) else {
      throw ValidationError("\(client) is no client's number.")
    }
    try daemon.order(.kick(client: client))
    print("client \(client) was ended")
  }
}

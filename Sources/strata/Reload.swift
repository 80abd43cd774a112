// SPDX-License-Identifier: Apache-2.0
//
// `strata reload`: tells a running stratad to read its certificates, keys and lists again.

import ArgumentParser
import Control

struct Reload: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Let a running daemon read certificates, keys and lists of names again.",
    discussion: """
      Clients that are connected stay; new ones meet what the files say now. When a file is wrong, \
      all stays as it was, and the status is 1. SIGHUP does the same.
      """)

  @OptionGroup var daemon: ControlOptions

  func run() throws {
    try daemon.order(.reload)
    print("reloaded")
  }
}

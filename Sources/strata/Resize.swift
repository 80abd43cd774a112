// SPDX-License-Identifier: Apache-2.0
//
// `strata resize`: tells a running stratad to make its disk larger.

import ArgumentParser
import Control

struct Resize: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make the disk of a running daemon larger.",
    discussion: """
      \(ControlOptions.discussion) What the disk grows by reads as zeroes. Clients learn of it \
      when they connect; those that are there may use it at once.
      """)

  @OptionGroup var daemon: ControlOptions
  @OptionGroup var choice: ExportChoice

  @Argument(help: "The new size, such as 20G; disks never shrink.")
  var size: String

  func run() throws {
    let byteCount = try parseSize(size, of: "SIZE")
    try daemon.order(.resize(byteCount: byteCount, export: choice.export))
    print("the disk has \(byteCount) bytes")
  }
}

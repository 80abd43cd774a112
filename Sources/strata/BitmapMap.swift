// SPDX-License-Identifier: Apache-2.0
//
// `strata bitmap map`: what is dirty in a bitmap that an image keeps.

import ArgumentParser
import Control

struct BitmapMap: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "map", abstract: "Print what is dirty in a bitmap of an image at rest.",
    discussion: """
      One line for each dirty run: its offset and its length in bytes. After a crash the runs may \
      be wider than what was written. A daemon tells the same to \
      nbdinfo --map=qemu:dirty-bitmap:NAME.
      """)

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @Argument(help: "The image.")
  var image: String

  @Argument(help: "The bitmap's name.")
  var name: String

  func run() throws {
    try ImageBitmaps.dirtyRuns(of: name, at: image, takesLocks: !forceShare) { run in
      print(run.start, run.byteCount)
    }
  }
}

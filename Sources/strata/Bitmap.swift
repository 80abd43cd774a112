// SPDX-License-Identifier: Apache-2.0
//
// `strata bitmap`: the dirty bitmaps of a running stratad, or of an image at rest.

import ArgumentParser
import Bitmaps
import Control
import ImageTools

struct Bitmap: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Record which parts of a disk are written (dirty bitmaps).",
    discussion: """
      \(BitmapPlace.discussion) Clients of the daemon read a bitmap as the meta context \
      qemu:dirty-bitmap:NAME. Each verb takes effect at one moment between two requests.
      """,
    subcommands: [
      BitmapList.self, BitmapAdd.self, BitmapRemove.self, BitmapClear.self, BitmapEnable.self,
      BitmapDisable.self, BitmapMerge.self, BitmapFreeze.self, BitmapThaw.self, BitmapRotate.self,
      BitmapMap.self,
    ])
}

/// The socket and the bitmap of a verb on one bitmap.
struct BitmapOptions: ParsableArguments {
  @OptionGroup var place: BitmapPlace
  @OptionGroup var choice: ExportChoice

  @Argument(help: "The bitmap's name.")
  var name: String

  func order(_ action: BitmapAction) throws {
    try place.order(.changeBitmap(action, export: choice.export))
  }
}

struct BitmapList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the bitmaps with what is dirty in them.")

  @Flag(help: "Print the daemon's own answer.")
  var json = false

  @OptionGroup var place: BitmapPlace
  @OptionGroup var choice: ExportChoice

  func run() throws {
    try place.ask(.bitmaps(export: choice.export), json: json, BitmapsText.text)
  }
}

struct BitmapAdd: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Make a bitmap, which records from now on.")

  @Option(
    name: [.customShort("g"), .long],
    help: ArgumentHelp("Bytes of a block, a power of 2 from 512 to 2G.", valueName: "bytes"))
  var granularity = "64k"

  @Flag(help: "Record nothing until 'strata bitmap enable'.")
  var disabled = false

  @Flag(help: "Keep it in the image (qcow2, version 3). In an image at rest it always is.")
  var persistent = false

  @OptionGroup var bitmap: BitmapOptions

  func run() throws {
    try bitmap.order(
      .add(
        name: bitmap.name,
        granularityByteCount: try parseSize(granularity, of: "--granularity"),
        isEnabled: !disabled, isPersistent: persistent))
  }
}

struct BitmapRemove: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Forget a bitmap that no client has selected.")

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.remove(name: bitmap.name)) }
}

struct BitmapClear: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "clear", abstract: "Make every block clean.")

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.clear(name: bitmap.name)) }
}

struct BitmapEnable: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "enable", abstract: "Record from now on.")

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.enable(name: bitmap.name)) }
}

struct BitmapDisable: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "disable", abstract: "Record no more; what is dirty stays dirty.")

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.disable(name: bitmap.name)) }
}

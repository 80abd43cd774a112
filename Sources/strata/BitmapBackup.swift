// SPDX-License-Identifier: Apache-2.0
//
// `strata bitmap merge|freeze|thaw|rotate`: what a backup does with bitmaps.

import ArgumentParser
import Bitmaps
import Control

struct BitmapMerge: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "merge", abstract: "Mark in one bitmap what is dirty in others.")

  @OptionGroup var place: BitmapPlace
  @OptionGroup var choice: ExportChoice

  @Argument(help: "The bitmap that is changed.")
  var target: String

  @Argument(help: "Bitmaps that are read, of any granularity.")
  var sources: [String]

  func run() throws {
    try place.order(
      .changeBitmap(.merge(sources: sources, target: target), export: choice.export))
  }
}

struct BitmapFreeze: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "freeze",
    abstract: "Show a bitmap as it is now, and record further writes apart.")

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.freeze(name: bitmap.name)) }
}

struct BitmapThaw: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "thaw", abstract: "End a freeze.",
    discussion: """
      After a backup that was done, the bitmap has what was written since the freeze. After one \
      that failed, it has that and all that it had before.
      """)

  @Flag(help: "How the backup went.")
  var outcome: BackupOutcome

  @OptionGroup var bitmap: BitmapOptions

  func run() throws { try bitmap.order(.thaw(name: bitmap.name, outcome)) }
}

struct BitmapRotate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rotate",
    abstract: "Stop recording in one bitmap and start in another, at one moment.")

  @OptionGroup var place: BitmapPlace
  @OptionGroup var choice: ExportChoice

  @Argument(help: "The bitmap that records no more.")
  var from: String

  @Argument(help: "The bitmap that is cleared and records from now on.")
  var to: String

  func validate() throws {
    guard from != to else {
      throw ValidationError("\(from) cannot follow itself: what it has would be lost.")
    }
  }

  func run() throws {
    try place.order(
      .transaction(
        [.disable(name: from), .clear(name: to), .enable(name: to)], export: choice.export))
  }
}

extension BackupOutcome: EnumerableFlag {}

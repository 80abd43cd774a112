// SPDX-License-Identifier: Apache-2.0
//
// `strata snapshot`: the internal snapshots of an image at rest, or of a running stratad.

import ArgumentParser
import Control
import ImageTools

struct Snapshot: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Keep states of a disk inside its image (internal snapshots).",
    discussion: """
      \(SnapshotPlace.discussion) A snapshot is named by its id, or by its name, whose first \
      bearer counts. A crash in the middle of a verb leaves the disk as it was before or after it, \
      and at worst leaked clusters. A daemon holds all requests while it takes or deletes a \
      snapshot: what was answered before is in the snapshot, and what is asked later is not.
      """,
    subcommands: [
      SnapshotList.self, SnapshotCreate.self, SnapshotApply.self, SnapshotDelete.self,
    ])
}

struct SnapshotList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the snapshots of an image.")

  @Option(help: "human or json.")
  var output = OutputFormat.human

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @OptionGroup var place: SnapshotPlace

  func run() throws {
    let (text, json) = place.isDaemon ? try answer() : try look()
    switch output {
    case .human: print(text, terminator: "")
    case .json: print(json)
    }
  }

  private func answer() throws -> (text: String, json: String) {
    let answer = try place.ask(.snapshots(export: place.choice.export)).value
    return (SnapshotsText.text(of: answer), SnapshotsText.jsonText(of: answer))
  }

  private func look() throws -> (text: String, json: String) {
    let info = try ImageInfo.list(
      path: place.place, format: try place.imageFormat(), includesBackingChain: false,
      takesLocks: !forceShare)[0]
    return (info.snapshotText, info.snapshotJSONText)
  }
}

struct SnapshotCreate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Keep the disk as it is now under a name.")

  @OptionGroup var place: SnapshotPlace

  @Argument(help: "Name of the snapshot.")
  var name: String

  func run() throws {
    let id =
      place.isDaemon
      ? try place.order(.create(name: name))
      : try Snapshots.create(path: place.place, format: try place.imageFormat(), name: name)
    print("snapshot \(id)")
  }
}

/// The place and the snapshot of a verb on one that is there.
struct SnapshotChoice: ParsableArguments {
  @OptionGroup var place: SnapshotPlace

  @Argument(help: "Id or name of the snapshot.")
  var snapshot: String
}

struct SnapshotApply: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apply",
    abstract: "Make the disk of an image that nobody serves what it was then.",
    discussion: "What was written since is lost.")

  @OptionGroup var choice: SnapshotChoice

  func run() throws {
    let place = choice.place
    if place.isDaemon { throw ControlError(place.place, SnapshotAction.applyRefusal) }
    try Snapshots.apply(
      path: place.place, format: try place.imageFormat(), idOrName: choice.snapshot)
  }
}

struct SnapshotDelete: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Forget a snapshot and give its space back.")

  @OptionGroup var choice: SnapshotChoice

  func run() throws {
    let place = choice.place
    if place.isDaemon {
      _ = try place.order(.delete(idOrName: choice.snapshot))
    } else {
      try Snapshots.delete(
        path: place.place, format: try place.imageFormat(), idOrName: choice.snapshot)
    }
  }
}

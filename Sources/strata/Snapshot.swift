// SPDX-License-Identifier: Apache-2.0
//
// `strata snapshot`: the internal snapshots of an image that nobody uses.

import ArgumentParser
import ImageTools

struct Snapshot: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Keep states of a disk inside its image (internal snapshots).",
    discussion: """
      The image must not be in use. A snapshot is named by its id, or by its name, whose first \
      bearer counts. A crash in the middle of a verb leaves the disk as it was before or after it, \
      and at worst leaked clusters.
      """,
    subcommands: [
      SnapshotList.self, SnapshotCreate.self, SnapshotApply.self, SnapshotDelete.self,
    ])
}

/// The image of a verb that changes its snapshots.
struct SnapshotImage: ParsableArguments {
  @Option(name: .short, help: "Format of the image: qcow2; found by its magic when left out.")
  var format: String?

  @Argument(help: "The image.")
  var file: String
}

struct SnapshotList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the snapshots of an image.")

  @Option(help: "human or json.")
  var output = OutputFormat.human

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @OptionGroup var image: SnapshotImage

  func run() throws {
    let info = try ImageInfo.list(
      path: image.file,
      format: try image.format.map { try CreateOptions.format($0, path: image.file) },
      includesBackingChain: false,
      takesLocks: !forceShare)[0]
    switch output {
    case .human: print(info.snapshotText, terminator: "")
    case .json: print(info.snapshotJSONText)
    }
  }
}

struct SnapshotCreate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Keep the disk as it is now under a name.")

  @OptionGroup var image: SnapshotImage

  @Argument(help: "Name of the snapshot.")
  var name: String

  func run() throws {
    let id = try Snapshots.create(
      path: image.file,
      format: try image.format.map { try CreateOptions.format($0, path: image.file) }, name: name)
    print("snapshot \(id)")
  }
}

struct SnapshotApply: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apply",
    abstract: "Make the disk what it was then; what was written since is lost.")

  @OptionGroup var image: SnapshotImage

  @Argument(help: "Id or name of the snapshot.")
  var snapshot: String

  func run() throws {
    try Snapshots.apply(
      path: image.file,
      format: try image.format.map { try CreateOptions.format($0, path: image.file) },
      idOrName: snapshot)
  }
}

struct SnapshotDelete: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Forget a snapshot and give its space back.")

  @OptionGroup var image: SnapshotImage

  @Argument(help: "Id or name of the snapshot.")
  var snapshot: String

  func run() throws {
    try Snapshots.delete(
      path: image.file,
      format: try image.format.map { try CreateOptions.format($0, path: image.file) },
      idOrName: snapshot)
  }
}

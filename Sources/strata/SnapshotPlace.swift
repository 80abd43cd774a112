// SPDX-License-Identifier: Apache-2.0
//
// Whose snapshots a verb is about: those of an image at rest, or of one that a daemon serves.

import ArgumentParser
import BlockTypes
import Control
import ImageTools
import LinuxIO

/// An image or a control socket.
struct SnapshotPlace: ParsableArguments {
  static let discussion = """
    PLACE is a qcow2 image that nobody serves, or the path that a running stratad was given with \
    --control.
    """

  @Option(name: .short, help: "Format of the image: qcow2; found by its magic when left out.")
  var format: String?

  @OptionGroup var choice: ExportChoice

  @Argument(help: "The image that nobody serves, or the daemon's control socket.")
  var place: String

  /// Somebody answers there; otherwise it is an image.
  var isDaemon: Bool { FileIdentity(ofPath: place)?.isSocket == true }

  /// Asks the daemon.
  func ask(_ request: ControlRequest) throws -> (line: String, value: JSONValue) {
    guard format == nil else {
      throw ValidationError("-f is for an image, and \(place) is a control socket")
    }
    return try ControlClient.ask(request, at: place)
  }

  /// Has the daemon change the snapshots, and returns the id of the one that is meant.
  func order(_ action: SnapshotAction) throws -> String {
    try ask(.changeSnapshot(action, export: choice.export)).value["snapshot"]?.text ?? "?"
  }

  /// The format that the user says of the image.
  func imageFormat() throws -> ImageFormat? {
    guard choice.export == nil else {
      throw ValidationError("--export is for a control socket, and \(place) is none")
    }
    return try format.map { try CreateOptions.format($0, path: place) }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Whose bitmaps a verb is about: those of a running daemon, or those of an image at rest.

import ArgumentParser
import Control
import LinuxIO

/// A control socket or an image.
struct BitmapPlace: ParsableArguments {
  static let discussion = """
    PLACE is the path that a running stratad was given with --control, or a qcow2 image that \
    nobody serves.
    """

  @Argument(help: "The daemon's control socket, or an image that nobody serves.")
  var place: String

  private func answer(_ request: ControlRequest) throws -> (line: String, value: JSONValue) {
    FileIdentity(ofPath: place)?.isRegular == true
      ? try ImageBitmaps.ask(request, at: place) : try ControlClient.ask(request, at: place)
  }

  /// Asks for a change, which is done or refused as a whole.
  func order(_ request: ControlRequest) throws { _ = try answer(request) }

  /// Asks, and prints the answer as it came or as `text` renders it.
  func ask(_ request: ControlRequest, json: Bool, _ text: (JSONValue) -> String) throws {
    let answer = try answer(request)
    json ? print(answer.line) : print(text(answer.value), terminator: "")
  }
}

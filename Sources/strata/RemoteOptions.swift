// SPDX-License-Identifier: Apache-2.0
//
// The options of the verbs on images about those that NBD servers keep. The images that the user
// names are opened wherever they are.

import ArgumentParser
import Control
import ImageTools

struct RemoteOptions: ParsableArguments {
  /// How long a verb tries to go on with a server that is gone.
  private static let secondsMax = 30

  @Option(
    help: ArgumentHelp(
      "Let images name this NBD URI as their backing file, or any one; may be repeated.",
      valueName: "uri|any"))
  var allowRemoteBase: [String] = []

  /// Opens exports for the time of `body`.
  func open<Result>(_ body: (RemoteImages) throws -> Result) throws -> Result {
    var policy = RemotePolicy()
    policy.allowedBases = allowRemoteBase
    try policy.validate()
    return try Self.open(policy, body)
  }

  static func open<Result>(
    _ policy: RemotePolicy, _ body: (RemoteImages) throws -> Result
  ) throws -> Result {
    var policy = policy
    policy.secondsMax = secondsMax
    let images = RemoteImages(policy)
    defer { images.close() }
    return try body(images)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad about images that other servers keep. tools/man/stratad.8 says the same
// in prose.

import ArgumentParser
import Control

struct RemoteOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Let images name this NBD URI as their backing file, or any one; may be repeated.",
      valueName: "uri|any"))
  var allowRemoteBase: [String] = []

  @Option(
    help: ArgumentHelp(
      "Time that requests wait for an image's server that is gone. (default: 60)",
      valueName: "seconds"))
  var remoteTimeout: Int?

  /// - Parameter common: what was said for all exports, and holds where nothing is said here.
  func policy(_ common: RemoteOptions?) -> RemotePolicy {
    var policy = RemotePolicy()
    policy.allowedBases = allowRemoteBase.isEmpty ? common?.allowRemoteBase ?? [] : allowRemoteBase
    policy.secondsMax =
      remoteTimeout ?? common?.remoteTimeout ?? RemotePolicy.secondsMaxDefault
    return policy
  }
}

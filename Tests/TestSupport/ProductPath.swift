// SPDX-License-Identifier: Apache-2.0
//
// Where the programs under test are.

import Foundation

/// The daemon beside the test bundle, or where `STRATAD` says.
public func daemonPath() throws -> String {
  if let path = ProcessInfo.processInfo.environment["STRATAD"] { return path }
  let folder = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
    .deletingLastPathComponent()
  let path = folder.appendingPathComponent("stratad").path
  guard access(path, X_OK) == 0 else {
    throw WireError.violation("no stratad beside the tests: build it, or set STRATAD")
  }
  return path
}

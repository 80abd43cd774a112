// SPDX-License-Identifier: Apache-2.0
//
// A folder with a small image, and where a server's socket goes.

import Foundation
import TestSupport

/// Made anew for every test.
struct ServeFixture {
  let folder: TemporaryFolder
  let image: String
  let socket: String

  /// - Parameter ownerID: who owns the folder; a server that became this user may tidy up.
  init(ownerID: UInt32? = nil) throws {
    folder = try TemporaryFolder()
    image = folder.path("disk.raw")
    socket = folder.path("s")
    _ = FileManager.default.createFile(atPath: image, contents: Data(count: 1 << 20))
    if let ownerID {
      chown(folder.root, ownerID, ownerID)
      chown(image, ownerID, ownerID)
    }
  }

  var arguments: [String] { [image, "--format", "raw", "--socket", socket] }

  func serve(
    _ more: String..., environment: [String: String] = [:]
  ) throws -> ServedProcess {
    try ServedProcess(stratad: arguments + more, environment: environment).waitUntilReady()
  }

  /// Runs stratad, which must fail by itself, and returns what it said.
  static func refusal(_ arguments: [String], code: Int32 = 1) throws -> String {
    let process = try ServedProcess(stratad: arguments)
    let ended = try process.waitForExit()
    guard ended == code else { throw ServeError("ended with \(ended): \(process.errorText)") }
    guard !process.outputText.contains("ready") else { throw ServeError("said ready and failed") }
    return process.errorText
  }

  static func exists(_ path: String) -> Bool {
    var status = stat()
    return lstat(path, &status) == 0
  }
}

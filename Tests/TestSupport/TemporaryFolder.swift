// SPDX-License-Identifier: Apache-2.0
//
// A folder that goes with its owner. This file creates and removes files below the system's
// temporary folder.

import Foundation

/// A fresh folder, short enough for socket paths, removed with everything in it at the end.
public final class TemporaryFolder: Sendable {
  public let root: String

  public init() throws {
    let parent = ProcessInfo.processInfo.environment["STRATA_TEST_FOLDER"] ?? "/tmp"
    var template = Array("\(parent)/strata.XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw WireError.system("mkdtemp", errno: errno) }
    root = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    // A daemon that was started as root serves as another user.
    chmod(root, 0o755)
  }

  deinit {
    do { try FileManager.default.removeItem(atPath: root) } catch {}
  }

  public func path(_ name: String) -> String { "\(root)/\(name)" }
}

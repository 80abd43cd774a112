// SPDX-License-Identifier: Apache-2.0
//
// How others learn that the export can be used: a descriptor, a line for people, a parent process.

import LinuxIO

/// Who wants to know when the export is ready. Each is told once.
struct Readiness {
  private let descriptor: TextOutput?
  private var parent: TextOutput?

  /// Checks that the descriptor is open, while an error can still be seen.
  init(_ config: ServerConfig) throws(ControlError) {
    descriptor = config.readyDescriptor.map { TextOutput(descriptor: $0) }
    if let descriptor, !descriptor.isOpen {
      throw ControlError("--ready-fd", "descriptor \(descriptor.descriptor) is not open")
    }
  }

  func telling(parent: TextOutput) -> Readiness {
    var copy = self
    copy.parent = parent
    return copy
  }

  /// Tells everybody. In the background the standard streams are given up, before the parent ends.
  ///
  /// - Parameter driveLines: for standard output, when somebody asked for them.
  func announce(driveLines: [String]) throws(ControlError) {
    for driveLine in driveLines {
      try Readiness.tell("standard output") { () throws(SystemError) in
        try TextOutput.standardOutput.writeLine(driveLine)
      }
    }
    if let descriptor {
      try Readiness.tell("--ready-fd") { () throws(SystemError) in
        try descriptor.writeLine("ready")
      }
      descriptor.close()
    }
    if let parent {
      try Readiness.tell("--fork") { () throws(SystemError) in
        try Environment.closeStandardStreams()
        try parent.writeLine("ready")
      }
      parent.close()
    }
  }

  private static func tell(
    _ subject: String, _ body: () throws(SystemError) -> Void
  ) throws(ControlError) {
    do throws(SystemError) { try body() } catch { throw ControlError(subject, error) }
  }
}

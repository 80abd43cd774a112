// SPDX-License-Identifier: Apache-2.0
//
// Rules of WRITE_ZEROES about space on the server's disk, which only the file behind the export
// shows. Spec: proto.md, "Command flags". The probe performs the I/O; this file asks for the size
// of a file.

import LinuxIO

enum SpaceChecks {
  static let all = [
    LintCheck(
      "wz.no-hole-allocates", .must, "With NO_HOLE the range is provisioned afterwards.",
      Source.text("Command flags"), writes: true, run: noHole),
    LintCheck(
      "wz.sparse", .quality, "Without NO_HOLE, space may be given back.",
      Source.text("Command flags"), writes: true, run: sparse),
  ]

  private static let byteCount = 8 << 20
  /// What the file system may take for itself, or another client may have changed.
  private static let slackByteCount: UInt64 = 1 << 20

  /// Space of the file before a WRITE_ZEROES of a range that is all data, and after it.
  private static func space(
    _ server: LintServer, flags: UInt16
  ) throws(LintStop) -> (before: UInt64, after: UInt64) {
    guard let path = server.rawFilePath else {
      throw .skipped("the file behind the export is not known: say --raw-file")
    }
    var found: (before: UInt64, after: UInt64) = (0, 0)
    try server.withArea(of: byteCount) { (area) throws(LintStop) in
      let probe = try server.writable()
      try need(probe.has(ExportFlag.sendWriteZeroes), "the server does not offer WRITE_ZEROES")
      try need(probe.has(ExportFlag.sendFlush), "the server does not offer FLUSH")
      func measure() throws(LintStop) -> UInt64 {
        try probe.expectSuccess(try probe.call(Command.flush), "a FLUSH")
        guard let count = FileSpace.allocatedByteCount(ofFileAt: path) else {
          throw .skipped("\(path) cannot be seen from here")
        }
        return count
      }
      for start in stride(from: 0, to: area.byteCount, by: 1 << 20) {
        let data = filler(min(1 << 20, area.byteCount - start), start)
        try probe.expectSuccess(
          try probe.write(area.offset + UInt64(start), data), "a WRITE")
      }
      found.before = try measure()
      let outcome = try probe.call(
        Command.writeZeroes, flags: flags, offset: area.offset, length: UInt64(area.byteCount))
      try probe.expectSuccess(outcome, "WRITE_ZEROES of \(area.byteCount) bytes")
      found.after = try measure()
    }
    return found
  }

  private static func noHole(_ server: LintServer) throws(LintStop) {
    let space = try space(server, flags: CommandFlag.noHole)
    try demand(
      space.after + slackByteCount >= space.before, "\(space.before) bytes of the file, as before",
      got: "\(space.after)")
  }

  private static func sparse(_ server: LintServer) throws(LintStop) {
    let space = try space(server, flags: 0)
    try demand(
      space.after + UInt64(byteCount) <= space.before + slackByteCount,
      "less than \(space.before) bytes of the file", got: "\(space.after)")
  }
}

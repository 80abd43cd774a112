// SPDX-License-Identifier: Apache-2.0
//
// Rules of read-only exports. Spec: proto.md, "Transmission flags", "Error values".
// The probe performs the I/O.

/// They try to write where the server says that it will not; the bytes are those that are there,
/// so that a server that breaks its word changes nothing. All of them need permission to write
/// nevertheless: TRIM and WRITE_ZEROES have no such bytes.
enum ReadOnlyChecks {
  static let all = [
    LintCheck(
      "ro.write", .should, "WRITE to a read-only export gets EPERM, with its payload consumed.",
      Source.text("Error values"), writes: true, run: write),
    LintCheck(
      "ro.must-error", .must, "Each change of a read-only export gets an error.",
      Source.text("Transmission flags"), writes: true, run: mustError),
    LintCheck(
      "ro.trim", .should, "TRIM of a read-only export gets EPERM.",
      Source.text("Error values"), writes: true, run: trim),
    LintCheck(
      "ro.write-zeroes", .should, "WRITE_ZEROES to a read-only export gets EPERM.",
      Source.text("Error values"), writes: true, run: writeZeroes),
    LintCheck(
      "ro.reads", .must, "A read-only export is read, and FLUSH does not end the connection.",
      Source.text("Transmission flags"), run: reads),
  ]

  private static func readOnly(_ server: LintServer) throws(LintStop) -> Probe {
    let probe = try server.enteredSomehow()
    try need(probe.has(ExportFlag.readOnly), "the export is writable")
    return probe
  }

  private static func write(_ server: LintServer) throws(LintStop) {
    let probe = try readOnly(server)
    let there = try probe.bytes(0, probe.blockByteCount)
    for flags in [0, CommandFlag.fua] where flags == 0 || probe.has(ExportFlag.sendFUA) {
      let outcome = try probe.write(0, there, flags: flags)
      try probe.expectError(outcome, Errno.notPermitted, of: "WRITE")
    }
    try probe.demandInStep(after: "a WRITE that was refused")
  }

  private static func mustError(_ server: LintServer) throws(LintStop) {
    let probe = try readOnly(server)
    let there = try probe.bytes(0, probe.blockByteCount)
    let length = UInt64(there.count)
    try demand(try probe.write(0, there).error != 0, "an error for WRITE", got: "success")
    for (command, name) in [
      (Command.trim, "TRIM"), (Command.writeZeroes, "WRITE_ZEROES"),
    ] {
      let outcome = try probe.call(command, length: length)
      try demand(outcome.error != 0, "an error for \(name)", got: "success")
    }
    try demandEqual(try probe.bytes(0, there.count), there, "the disk unchanged")
  }

  private static func trim(_ server: LintServer) throws(LintStop) {
    let probe = try readOnly(server)
    let outcome = try probe.call(Command.trim, length: UInt64(probe.blockByteCount))
    try probe.expectError(outcome, Errno.notPermitted, of: "TRIM")
    try probe.demandInStep(after: "a TRIM that was refused")
  }

  private static func writeZeroes(_ server: LintServer) throws(LintStop) {
    let probe = try readOnly(server)
    let outcome = try probe.call(Command.writeZeroes, length: UInt64(probe.blockByteCount))
    try probe.expectError(outcome, Errno.notPermitted, of: "WRITE_ZEROES")
    try probe.demandInStep(after: "a WRITE_ZEROES that was refused")
  }

  private static func reads(_ server: LintServer) throws(LintStop) {
    let probe = try readOnly(server)
    _ = try probe.bytes(0, probe.blockByteCount)
    _ = try probe.call(Command.flush)
    try probe.demandInStep(after: "FLUSH on a read-only export")
  }
}

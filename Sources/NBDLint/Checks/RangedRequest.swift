// SPDX-License-Identifier: Apache-2.0
//
// What the checks of TRIM and WRITE_ZEROES have in common: a range of the disk, no payload, and
// data beside it that has to stay. The probe performs the I/O.

/// A command that changes a range of the disk without a payload.
struct RangedRequest {
  let command: UInt16
  /// As the specification calls it.
  let name: String
  /// The flag with which servers offer it.
  let offer: UInt16

  /// A connection to a writable export that offers the command.
  func probe(_ server: LintServer, blockSizes: Bool = true) throws(LintStop) -> Probe {
    let probe = try server.writable(blockSizes: blockSizes)
    try need(probe.has(offer), "the server does not offer \(name)")
    return probe
  }

  /// Fills an area with data and changes `ranges` of it; returns what was there and what is now.
  func change(
    _ server: LintServer, _ ranges: [Range<Int>], flags: UInt16, blockSizes: Bool
  ) throws(LintStop) -> (before: [UInt8], after: [UInt8]) {
    var found: (before: [UInt8], after: [UInt8]) = ([], [])
    try server.withArea(of: 512 << 10) { (area) throws(LintStop) in
      let probe = try probe(server, blockSizes: blockSizes)
      if flags & CommandFlag.fua != 0 {
        try need(probe.has(ExportFlag.sendFUA), "the server does not offer FUA")
      }
      found.before = filler(area.byteCount)
      try probe.expectSuccess(try probe.write(area.offset, found.before), "a WRITE")
      for range in ranges {
        let outcome = try probe.call(
          command, flags: flags, offset: area.offset + UInt64(range.lowerBound),
          length: UInt64(range.count))
        try probe.expectSuccess(outcome, "\(name) of \(range.count) bytes")
      }
      found.after = try probe.bytes(area.offset, area.byteCount)
    }
    return found
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// All kinds of requests at all kinds of places: nothing traps, and each verdict keeps its promises.
// Spec: proto.md, "Transmission phase"; its branch extension-ext-header.

import BlockTypes
import NBDProtocol
import Testing

private let size: UInt64 = 1 << 40

/// One way to have negotiated, and one kind of export.
private struct Setting: CaseIterable, Sendable, CustomTestStringConvertible {
  var framing: ReplyFraming
  var isReadOnly: Bool
  var blockSizesAgreed: Bool

  static var allCases: [Setting] {
    [.simple, .structured, .extended].flatMap { framing in
      [false, true].flatMap { isReadOnly in
        [false, true].map {
          Setting(framing: framing, isReadOnly: isReadOnly, blockSizesAgreed: $0)
        }
      }
    }
  }

  var rules: TransmissionRules {
    TransmissionRules(
      traits: ExportTraits(
        byteCount: size, isReadOnly: isReadOnly, minimumBlockByteCount: 512),
      negotiated: Negotiated(
        exportIndex: 0, structuredReplies: framing != .simple,
        extendedHeaders: framing == .extended,
        contexts: framing == .simple ? [] : [.baseAllocation, .allocationDepth],
        blockSizesAgreed: blockSizesAgreed))
  }

  var testDescription: String {
    "\(framing)\(isReadOnly ? ", read-only" : "")\(blockSizesAgreed ? ", block sizes" : "")"
  }
}

@Suite struct `every request at every place` {
  private static let places: [UInt64] = [
    0, 1, 8, 12, 16, 511, 512, 4096, 1 << 25, 1 << 25 + 1, 1 << 26, 1 << 26 + 1, 1 << 32 - 1,
    1 << 32, 1 << 32 + 512, size - 512, size - 1, size, size + 1, 1 << 63, .max - 511, .max,
  ]

  @Test(arguments: Setting.allCases)
  private func `gets a verdict that keeps its promises`(_ setting: Setting) {
    let rules = setting.rules
    for command in Array(0...9) + [0xffff] as [UInt16] {
      for flags in (0..<64).map({ UInt16($0) }) + [1 << 6, 1 << 15] {
        for offset in Self.places {
          for length in Self.places where setting.framing == .extended || length < 1 << 32 {
            let header = RequestHeader(
              flags: CommandFlags(rawValue: flags), command: command, cookie: 1, offset: offset,
              length: length)
            if let broken = breach(rules.admit(header), header, setting) {
              Issue.record("\(broken): \(header)")
              return
            }
          }
        }
      }
    }
  }

  /// Which promise a verdict breaks, if it does.
  private func breach(
    _ verdict: Verdict, _ header: RequestHeader, _ setting: Setting
  ) -> String? {
    let isCounted = setting.framing == .extended && header.flags.contains(.payloadLength)
    let payload = header.command == 1 || isCounted ? header.length : 0
    switch verdict {
    case .disconnect: return header.command == 2 ? nil : "DISC was not asked for"
    case .hangUp:
      return payload > (isCounted ? 32 << 20 : 64 << 20) ? nil : "a small payload ends all"
    case .refuse(let error, let drained):
      if drained != payload { return "\(drained) bytes are drained" }
      let legal: Set<NBDErrno> = [.EINVAL, .EPERM, .ENOSPC, .EOVERFLOW]
      return legal.contains(error) ? nil : "refused with \(error)"
    case .filterStatus(let byteCount):
      return header.command == 7 && isCounted && byteCount == Int(header.length) && byteCount <= 16
        ? nil : "a filter out of place"
    case .execute(let command):
      let (end, isOverflow) = header.offset.addingReportingOverflow(header.length)
      if isOverflow || end > size { return "past the end" }
      if command == .read || command == .write, header.length > 32 << 20 { return "too long" }
      if setting.isReadOnly, [.write, .trim, .writeZeroes].contains(command) { return "changes" }
      if header.flags.rawValue >= 64 { return "an unknown flag" }
      if isCounted, command != .write { return "a payload out of place" }
      return nil
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Why the server ends a handshake without an answer. Spec: proto.md, "Handshake phase" and
// "Terminating the transmission phase" (hard disconnect). This file performs no I/O.

/// What a client did that leaves no answer but closing the connection.
///
/// The description never repeats bytes of the client as they came.
public enum ProtocolViolation: Error, Hashable, Sendable {
  case unknownClientFlags(UInt32)
  case optionNeedsFixedNewstyle(option: UInt32)
  case badOptionMagic
  case optionTooLong(option: UInt32, byteCount: UInt32)
  case tooManyOptions(max: Int)
  /// EXPORT_NAME has no error reply: `shownName` was cleaned and cut.
  case unknownExport(shownName: String)
  case malformedExportName
  /// EXPORT_NAME, which is for clients without extended headers.
  case exportNameWithExtendedHeaders
  /// EXPORT_NAME while the server stops.
  case stopping
  /// EXPORT_NAME without TLS where TLS is required.
  case exportNeedsTLS
  /// EXPORT_NAME of a client that may not use the export.
  case clientRefused(reason: String)
  /// Bytes came behind STARTTLS before it was answered: somebody on the way may have put them
  /// there, to be taken for what the client said under TLS (CVE-2021-3716).
  case plainTextBehindStartTLS
}

extension ProtocolViolation: CustomStringConvertible {
  public var description: String {
    switch self {
    case .unknownClientFlags(let flags):
      "the client set unknown handshake flags (0x\(String(flags, radix: 16)))"
    case .optionNeedsFixedNewstyle(let option):
      "the client sent option \(option) without fixed newstyle"
    case .badOptionMagic: "an option did not start with its magic number"
    case .optionTooLong(let option, let byteCount):
      "option \(option) announced \(byteCount) bytes"
    case .tooManyOptions(let max): "the client sent more than \(max) options"
    case .unknownExport(let shownName): "the client asked for the unknown export \"\(shownName)\""
    case .malformedExportName: "the client sent an export name that is not a string"
    case .exportNameWithExtendedHeaders:
      "the client used EXPORT_NAME after it had negotiated extended headers"
    case .stopping: "the client asked for an export while the server stops"
    case .exportNeedsTLS: "the client asked for an export without TLS"
    case .clientRefused(let reason): "the client may not use the export: \(reason)"
    case .plainTextBehindStartTLS: "plain text came behind STARTTLS"
    }
  }
}

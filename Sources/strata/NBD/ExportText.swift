// SPDX-License-Identifier: Apache-2.0
//
// Exports as text and as JSON. The keys are those of nbdinfo(1), where it has one. A server's words
// reach no terminal as they came.

import ImageTools
import NBDProtocol

/// Shows what a server told.
struct ExportText {
  let uri: NBDURI
  let mode: ProtocolMode
  let isEncrypted: Bool
  let exports: [ExportDetails]

  var human: String {
    let packets =
      switch mode {
      case .oldstyle, .exportName, .simple: "simple"
      case .structured: "structured"
      case .extended: "extended"
      }
    var lines = [
      "protocol: \(protocolName) \(isEncrypted ? "with" : "without") TLS, using \(packets) packets"
    ]
    for export in exports {
      lines.append("export=\(JSONWriter.quote(ExportName.printable(export.name))):")
      for (key, value) in fields(of: export) {
        switch value {
        case .text(let text): lines.append("\t\(key): \(ExportName.printable(text))")
        case .names(let names):
          lines.append("\t\(key):")
          lines += names.map { "\t\t\(ExportName.printable($0))" }
        case .number(let number):
          let size = key == "export-size" ? " (\(ByteCountText.describe(number)))" : ""
          lines.append("\t\(key): \(number)\(size)")
        case .fact(let fact): lines.append("\t\(key): \(fact)")
        }
      }
    }
    return lines.joined(separator: "\n") + "\n"
  }

  var json: String {
    var writer = JSONWriter()
    writer.beginObject()
    writer.field("protocol", protocolName)
    writer.field("TLS", isEncrypted)
    writer.field("structured", mode >= .structured)
    writer.field("extended", mode == .extended)
    writer.beginArray("exports")
    for export in exports {
      writer.beginObject()
      writer.field("export-name", export.name)
      for (key, value) in fields(of: export) {
        switch value {
        case .text(let text): writer.field(key, text)
        case .names(let names):
          writer.beginArray(key)
          for name in names { writer.field(nil, name) }
          writer.end()
        case .number(let number): writer.field(key, number)
        case .fact(let fact): writer.field(key, fact)
        }
      }
      writer.end()
    }
    writer.end()
    writer.end()
    return writer.finish()
  }

  private enum Value {
    case text(String)
    case names([String])
    case number(UInt64)
    case fact(Bool)
  }

  private var protocolName: String {
    switch mode {
    case .oldstyle: "oldstyle"
    case .exportName: "newstyle"
    case .simple, .structured, .extended: "newstyle-fixed"
    }
  }

  /// What is known of an export; a server may have told its name only.
  private func fields(of export: ExportDetails) -> [(String, Value)] {
    var fields: [(String, Value)] = []
    if !export.description.isEmpty { fields.append(("description", .text(export.description))) }
    fields.append(("uri", .text(uri.with(exportName: export.name).description)))
    if !export.contexts.isEmpty { fields.append(("contexts", .names(export.contexts))) }
    guard let byteCount = export.byteCount else { return fields }
    fields.append(("export-size", .number(byteCount)))
    let facts: [(String, TransmissionFlags)] = [
      ("is_rotational", .rotational), ("is_read_only", .readOnly), ("can_cache", .sendCache),
      ("can_df", .sendDF), ("can_fast_zero", .sendFastZero), ("can_flush", .sendFlush),
      ("can_fua", .sendFUA), ("can_multi_conn", .canMultiConn), ("can_trim", .sendTrim),
      ("can_zero", .sendWriteZeroes),
    ]
    for (key, flag) in facts { fields.append((key, .fact(export.flags.contains(flag)))) }
    if let sizes = export.blockSizes {
      fields.append(("block_size_minimum", .number(UInt64(sizes.minimum))))
      fields.append(("block_size_preferred", .number(UInt64(sizes.preferred))))
      fields.append(("block_size_maximum", .number(UInt64(sizes.maximum))))
    }
    return fields
  }
}

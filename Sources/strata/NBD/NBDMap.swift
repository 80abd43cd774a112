// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd map`: the status of each part of an export, in one or several contexts.

import ArgumentParser
import BlockTypes
import ImageTools
import NBDClient
import NBDProtocol

struct NBDMap: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "map", abstract: "Show the status of each part of an export.",
    discussion: """
      Without --context, every context of the export is shown, side by side. With one context the \
      JSON is that of nbdinfo --map.
      """)

  @Option(help: ArgumentHelp("A meta context; may be repeated.", valueName: "name"))
  var context: [String] = []

  @Option(help: "Where to begin, such as 1G.")
  var offset: String?

  @Option(help: "How far to go.")
  var length: String?

  @Flag(help: "Print JSON.")
  var json = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "The export.")
  var uri: String

  func run() throws {
    let uri = try parseURI(uri)
    let start = try offset.map { try parseSize($0, of: "--offset") } ?? 0
    let byteCount = try length.map { try parseSize($0, of: "--length") }
    let options = connect.options(contexts: context.isEmpty ? .all : .named(context))
    let wanted = context
    let json = json
    try runToEnd(about: uri) {
      let connection = try await NBDConnection.connect(uri, options)
      let names = connection.export.contexts
      for name in wanted where !names.contains(name) {
        throw CopyFault("\(uri): the export has no context \(name)")
      }
      guard !names.isEmpty else { throw CopyFault("\(uri): the export has no meta contexts") }
      guard start <= connection.byteCount else {
        throw CopyFault("\(uri): --offset \(start) passes the end at \(connection.byteCount)")
      }
      let left = connection.byteCount - start
      let range = ByteRange(start: start, end: start + min(byteCount ?? left, left))
      try await print(connection, range, names, json: json)
      try await connection.disconnect()
    }
  }

  private func print(
    _ connection: NBDConnection, _ range: ByteRange, _ names: [String], json: Bool
  ) async throws {
    let block = UInt64(connection.export.minimumBlockByteCount)
    guard range.start.isAligned(to: block),
      range.end.isAligned(to: block) || range.end == connection.byteCount
    else { throw CopyFault("\(connection.uri): the export has blocks of \(block) bytes") }
    var count = 0
    if !json && names.count > 1 {
      let title = names.map(ExportName.printable).joined(separator: " ")
      Swift.print("offset length \(title)")
    }
    try await connection.map(range) { found in
      if json {
        let text = ExtentText.json(found, names)
        Swift.print(count == 0 ? "[" : ",\n", text, separator: "", terminator: "")
      } else {
        Swift.print(ExtentText.row(found, names))
      }
      count += 1
    }
    if json { Swift.print(count == 0 ? "[]" : "]") }
  }
}

/// A range and its statuses as text.
enum ExtentText {
  static func row(_ found: MappedRange, _ names: [String]) -> String {
    var cells = [pad("\(found.offset)"), pad("\(found.byteCount)")]
    for (name, status) in zip(names, found.statuses) {
      let text = description(of: status, in: name)
      cells.append(pad("\(status)", 3) + (text.isEmpty ? "" : "  \(text)"))
    }
    return cells.joined(separator: "  ")
  }

  static func json(_ found: MappedRange, _ names: [String]) -> String {
    var writer = JSONWriter(layout: .oneLine)
    writer.beginObject()
    writer.field("offset", found.offset)
    writer.field("length", found.byteCount)
    if names.count == 1 {
      write(found.statuses[0], names[0], to: &writer)
    } else {
      writer.beginArray("contexts")
      for (name, status) in zip(names, found.statuses) {
        writer.beginObject()
        writer.field("name", name)
        write(status, name, to: &writer)
        writer.end()
      }
      writer.end()
    }
    writer.end()
    return writer.finish()
  }

  private static func write(_ status: UInt64, _ name: String, to writer: inout JSONWriter) {
    writer.field("type", status)
    let text = description(of: status, in: name)
    if !text.isEmpty { writer.field("description", text) }
  }

  /// The words of nbdinfo(1).
  static func description(of status: UInt64, in name: String) -> String {
    if name == "base:allocation" {
      return ["data", "hole", "zero", "hole,zero"][Int(status & 3)]
    }
    if name == "qemu:allocation-depth" {
      return status == 0 ? "absent" : status == 1 ? "local" : "backing depth \(status)"
    }
    if name.hasPrefix("qemu:dirty-bitmap:") { return status & 1 == 0 ? "clean" : "dirty" }
    return ""
  }

  private static func pad(_ text: String, _ width: Int = 10) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
  }
}

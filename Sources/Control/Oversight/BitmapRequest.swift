// SPDX-License-Identifier: Apache-2.0
//
// Changes of dirty bitmaps as JSON. Source: stratad(8), "CONTROL SOCKET".
// This file performs no I/O.

import Bitmaps
import ImageTools

extension BitmapAction {
  private static let nameNoun = "bitmap's name"

  /// Reads what `request` asks for; nil when that is no change of a bitmap.
  init?(parsing request: inout RequestMembers) throws(RequestFault) {
    switch request.name {
    case "bitmap-add":
      self = .add(
        name: try request.text("name", Self.nameNoun),
        granularityByteCount: UInt64(
          try request.number(
            "granularity", "number of bytes", ifMissing: Int64(DirtyBitmap.defaultGranularity))),
        isEnabled: !(try request.flag("disabled")),
        isPersistent: try request.flag("persistent"))
    case "bitmap-remove": self = .remove(name: try request.text("name", Self.nameNoun))
    case "bitmap-clear": self = .clear(name: try request.text("name", Self.nameNoun))
    case "bitmap-enable": self = .enable(name: try request.text("name", Self.nameNoun))
    case "bitmap-disable": self = .disable(name: try request.text("name", Self.nameNoun))
    case "bitmap-merge":
      self = .merge(
        sources: try request.texts("sources", "list of bitmaps' names"),
        target: try request.text("target", Self.nameNoun))
    case "bitmap-freeze": self = .freeze(name: try request.text("name", Self.nameNoun))
    case "bitmap-thaw":
      let noun = "word of \"done\" and \"failed\""
      let name = try request.text("name", Self.nameNoun)
      guard let outcome = BackupOutcome(rawValue: try request.text("backup", noun)) else {
        throw RequestMembers.wrong("backup", noun)
      }
      self = .thaw(name: name, outcome)
    default: return nil
    }
  }

  /// Writes the members of the object that asks for this.
  func write(to json: inout JSONWriter) {
    func write(_ ask: String, _ name: String) {
      json.field("ask", ask)
      json.field("name", name)
    }
    switch self {
    case .add(let name, let granularityByteCount, let isEnabled, let isPersistent):
      write("bitmap-add", name)
      json.field("granularity", granularityByteCount)
      if !isEnabled { json.field("disabled", true) }
      if isPersistent { json.field("persistent", true) }
    case .remove(let name): write("bitmap-remove", name)
    case .clear(let name): write("bitmap-clear", name)
    case .enable(let name): write("bitmap-enable", name)
    case .disable(let name): write("bitmap-disable", name)
    case .merge(let sources, let target):
      json.field("ask", "bitmap-merge")
      json.beginArray("sources")
      for source in sources { json.field(nil, source) }
      json.end()
      json.field("target", target)
    case .freeze(let name): write("bitmap-freeze", name)
    case .thaw(let name, let outcome):
      write("bitmap-thaw", name)
      json.field("backup", outcome.rawValue)
    }
  }
}

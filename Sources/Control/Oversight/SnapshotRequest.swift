// SPDX-License-Identifier: Apache-2.0
//
// Changes of the internal snapshots of an image that is served, as JSON and as what the export does
// with the file while it stands still. Source: stratad(8), "CONTROL SOCKET"; decision 0031.

import DataPlane
import ImageTools
import LinuxIO

/// An order about one internal snapshot.
public enum SnapshotAction: Hashable, Sendable {
  /// Keep the disk as it is at one moment.
  case create(name: String)
  case delete(idOrName: String)

  /// Reads what `request` asks for; nil when that is no change of a snapshot.
  init?(parsing request: inout RequestMembers) throws(RequestFault) {
    switch request.name {
    case "snapshot-create": self = .create(name: try request.text("name", "snapshot's name"))
    case "snapshot-delete":
      self = .delete(idOrName: try request.text("snapshot", "snapshot's id or name"))
    case "snapshot-apply": throw RequestFault(reason: Self.applyRefusal)
    default: return nil
    }
  }

  /// Why a disk in use does not go back.
  public static let applyRefusal =
    "going back to a snapshot would change the disk under its clients, which have parts of it in "
    + "memory; detach first: stop the export, then apply the snapshot to the image"

  /// Writes the members of the object that asks for this.
  func write(to json: inout JSONWriter) {
    switch self {
    case .create(let name):
      json.field("ask", "snapshot-create")
      json.field("name", name)
    case .delete(let idOrName):
      json.field("ask", "snapshot-delete")
      json.field("snapshot", idOrName)
    }
  }

  /// What is done to the file. Its result is the snapshot's id.
  var edit: ImageEdit {
    ImageEdit { storage in
      do throws(ImageFault) {
        switch self {
        case .create(let name):
          return .done(try Snapshots.create(inStandingStill: storage, name: name))
        case .delete(let idOrName):
          return .done(try Snapshots.delete(inStandingStill: storage, idOrName: idOrName))
        }
      } catch {
        return .failed(error.description, losesWrites: error.losesWrites)
      }
    }
  }
}

/// Renders the answer to `snapshots` for people.
public enum SnapshotsText {
  public static func text(of answer: JSONValue) -> String {
    SnapshotRow.text(of: rows(of: answer))
  }

  /// The array that `strata snapshot list` prints of an image at rest.
  public static func jsonText(of answer: JSONValue) -> String {
    var json = JSONWriter()
    json.beginArray()
    for row in rows(of: answer) { row.write(to: &json) }
    json.end()
    return json.finish()
  }

  private static func rows(of answer: JSONValue) -> [SnapshotRow] {
    (answer["snapshots"]?.elements ?? []).map { snapshot in
      let seconds = number(snapshot["vm-clock-sec"])
      let (clock, overflows) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
      return SnapshotRow(
        id: snapshot["id"]?.text ?? "?", name: snapshot["name"]?.text ?? "?",
        machineStateByteCount: number(snapshot["vm-state-size"]),
        dateSeconds: snapshot["date-sec"]?.integer ?? 0,
        dateNanoseconds: UInt32(clamping: number(snapshot["date-nsec"])),
        machineClockNanoseconds: overflows ? 0 : clock &+ number(snapshot["vm-clock-nsec"]),
        instructionCount: snapshot["icount"].map { number($0) })
    }
  }

  private static func number(_ value: JSONValue?) -> UInt64 {
    UInt64(clamping: value?.integer ?? 0)
  }
}

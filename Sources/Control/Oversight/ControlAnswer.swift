// SPDX-License-Identifier: Apache-2.0
//
// What goes back over the control socket, as JSON. Source: stratad(8), "CONTROL SOCKET".
// This file performs no I/O.

import DataPlane
import ImageTools
import LinuxIO
import NBDProtocol
import TLS

/// The answer to one line.
enum ControlAnswer: Sendable {
  case status(ExportStatus)
  case exports([ExportStatus])
  case clients([ClientStatus], ReceptionStatus)
  case kicked(client: UInt64)
  case bitmaps([BitmapStatus])
  case done(actionCount: Int)
  case resized(byteCount: UInt64)
  /// The internal snapshots, in their order.
  case snapshots([SnapshotRow])
  /// A snapshot was taken or deleted, and clients were held for so long.
  case snapshotChanged(id: String, heldNanoseconds: UInt64)
  case reloaded
  case refusal(String)

  /// The answer in one line, without a line feed.
  var line: String {
    var json = JSONWriter(layout: .oneLine)
    json.beginObject()
    switch self {
    case .status(let status): ControlAnswer.write(status, to: &json)
    case .exports(let exports):
      json.beginArray("exports")
      for export in exports {
        json.beginObject()
        ControlAnswer.writeHead(export, to: &json)
        json.end()
      }
      json.end()
    case .clients(let clients, let reception):
      json.beginArray("clients")
      for client in clients { ControlAnswer.write(client, to: &json) }
      json.end()
      json.field("connections", reception.connectionCount)
      json.field("connections-max", reception.connectionsMax)
      json.field("connections-total", reception.connectionTotal)
    case .kicked(let client): json.field("kicked", client)
    case .bitmaps(let bitmaps):
      json.beginArray("bitmaps")
      for bitmap in bitmaps { ControlAnswer.write(bitmap, to: &json) }
      json.end()
    case .done(let actionCount): json.field("done", actionCount)
    case .resized(let byteCount): json.field("disk-bytes", byteCount)
    case .snapshots(let rows):
      json.beginArray("snapshots")
      for row in rows { row.write(to: &json) }
      json.end()
    case .snapshotChanged(let id, let heldNanoseconds):
      json.field("snapshot", id)
      json.field("held-milliseconds", heldNanoseconds / 1_000_000)
    case .reloaded: json.field("reloaded", true)
    case .refusal(let reason): json.field("error", reason)
    }
    json.end()
    return json.finish()
  }

  /// The commands that a client may use, under the names of the protocol.
  static let commands: [(command: Command, name: String)] = [
    (.read, "read"), (.write, "write"), (.writeZeroes, "write-zeroes"), (.trim, "trim"),
    (.flush, "flush"), (.cache, "cache"), (.blockStatus, "block-status"),
  ]

  private static func writeHead(_ status: ExportStatus, to json: inout JSONWriter) {
    json.field("export", status.name)
    json.field("disk-bytes", status.diskByteCount)
    json.field("read-only", status.isReadOnly)
    if let damage = status.damage { json.field("damage", damage) }
    json.field("uptime-seconds", status.uptimeNanoseconds / 1_000_000_000)
    json.beginObject("connections")
    json.field("now", status.connectionCount)
    json.field("total", status.connectionTotal)
    json.field("max", status.connectionsMax)
    json.end()
  }

  private static func write(_ status: ExportStatus, to json: inout JSONWriter) {
    writeHead(status, to: &json)
    writeRequests(status, to: &json)
    let calls = status.systemCalls
    json.beginObject("system-calls")
    json.field("total", calls.total)
    json.field("io-submit", calls.submit)
    json.field("other-disk", calls.otherDisk)
    json.field("receive", calls.receive)
    json.field("send", calls.send)
    json.field("epoll-wait", calls.wait)
    json.field("other", calls.other)
    json.end()
    json.beginObject("disk")
    json.field("in-flight", status.diskInFlightCount)
    json.field("completions", status.diskCompletionCount)
    json.end()
    json.beginObject("table-cache")
    json.field("pages", status.tablePageCount)
    json.field("pages-max", status.tablePagesMax)
    json.field("bytes", status.tablePageCount * status.tablePageByteCount)
    json.field("bytes-max", status.tablePagesMax * status.tablePageByteCount)
    json.field("dirty-pages", status.dirtyTablePageCount)
    json.end()
    json.field("flushes", status.flushCount)
    json.beginObject("allocations")
    json.field("runs", status.allocationCount)
    json.field("clusters", status.allocatedClusterCount)
    json.end()
    json.beginObject("compression")
    json.field("clusters", status.packedClusterCount)
    json.field("bytes", status.unpackedByteCount)
    json.field("packed-bytes", status.packedByteCount)
    json.end()
    json.beginObject("spin")
    json.field("hits", status.spinHitCount)
    json.field("misses", status.spinMissCount)
    json.end()
  }

  private static func writeRequests(_ status: ExportStatus, to json: inout JSONWriter) {
    let all = status.commands.values
    // No server flag offers RESIZE, so who asks for it asks for something unknown.
    let unknown = status.unknownRequestCount + (status.commands[.resize]?.requestCount ?? 0)
    json.beginObject("requests")
    json.field("in-flight", status.inFlightCount)
    json.field("total", all.reduce(status.unknownRequestCount) { $0 + $1.requestCount })
    json.field("bytes", all.reduce(0) { $0 &+ $1.byteCount })
    json.field("errors", all.reduce(status.unknownRequestCount) { $0 + $1.errorCount })
    json.field("unknown", unknown)
    json.end()
    json.beginObject("commands")
    for (command, name) in commands {
      guard let counters = status.commands[command] else { continue }
      json.beginObject(name)
      json.field("requests", counters.requestCount)
      json.field("bytes", counters.byteCount)
      json.field("errors", counters.errorCount)
      json.end()
    }
    json.end()
  }

  private static func write(_ tls: TLSStatus, to json: inout JSONWriter) {
    json.beginObject("tls")
    json.field("version", tls.version)
    switch tls.peer {
    case .preSharedKey(let identity): json.field("identity", identity)
    case .certificate(let name): json.field("name", name)
    case .refusedCertificate(let reason): json.field("refused", reason)
    case .anonymous: break
    }
    json.end()
  }

  private static func write(_ bitmap: BitmapStatus, to json: inout JSONWriter) {
    json.beginObject()
    json.field("name", bitmap.name)
    json.field("granularity", bitmap.granularityByteCount)
    json.field("persistent", bitmap.isPersistent)
    if bitmap.isRecovered { json.field("recovered", true) }
    if let reason = bitmap.unusableReason { json.field("unusable", reason) }
    json.field("enabled", bitmap.isEnabled)
    json.field("frozen", bitmap.isFrozen)
    json.field("dirty-bytes", bitmap.dirtyByteCount)
    json.field("memory-bytes", bitmap.memoryByteCount)
    json.beginArray("clients")
    for client in bitmap.clients { json.field(nil, client) }
    json.end()
    json.end()
  }

  private static func write(_ client: ClientStatus, to json: inout JSONWriter) {
    json.beginObject()
    json.field("client", client.number)
    json.beginObject("peer")
    switch client.peer {
    case .unix(let userID, let groupID, let processID):
      json.field("kind", "unix")
      json.field("uid", userID)
      json.field("gid", groupID)
      json.field("pid", processID)
    case .tcp(let address):
      json.field("kind", "tcp")
      json.field("address", address.description)
    case .vsock(let contextID, let port):
      json.field("kind", "vsock")
      json.field("cid", contextID)
      json.field("port", port)
    case .unknown: json.field("kind", "unknown")
    }
    json.end()
    json.field("connected-seconds", client.connectedNanoseconds / 1_000_000_000)
    json.field("phase", client.phase.rawValue)
    if let export = client.export { json.field("export", export) }
    if let tls = client.tls { write(tls, to: &json) }
    if let negotiated = client.negotiated {
      json.field("structured-replies", negotiated.structuredReplies)
      json.field("extended-headers", negotiated.extendedHeaders)
      json.field("block-sizes", negotiated.blockSizesAgreed)
      json.beginArray("contexts")
      for name in client.contextNames { json.field(nil, name) }
      json.end()
    }
    json.field("stalled", client.isStalled)
    json.field("in-flight", client.inFlightCount)
    json.field("buffered-bytes", client.bufferedByteCount)
    json.field("requests", client.requestCount)
    json.field("errors", client.errorCount)
    json.field("bytes-received", client.receivedByteCount)
    json.field("bytes-sent", client.sentByteCount)
    json.end()
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What an export tells about itself. This file performs no I/O.

import NBDProtocol

/// The state of an export at the end of a tick. All totals are since its start.
public struct ExportStatus: Sendable {
  public internal(set) var name: String
  public internal(set) var diskByteCount: UInt64
  public internal(set) var isReadOnly: Bool
  /// How the image contradicts itself; nil when it does not, as far as is known.
  public internal(set) var damage: String?
  public internal(set) var uptimeNanoseconds: UInt64

  public internal(set) var connectionCount: Int
  public internal(set) var connectionsMax: Int
  /// Connections that were ever accepted.
  public internal(set) var connectionTotal: UInt64

  /// By the command's number on the wire.
  public internal(set) var commands: [Command: CommandCounters]
  /// Requests of commands that the protocol does not know; all were refused.
  public internal(set) var unknownRequestCount: UInt64
  /// Requests that were taken and whose answer has not left yet.
  public internal(set) var inFlightCount: Int

  public internal(set) var systemCalls: SystemCallCounts
  public internal(set) var diskInFlightCount: Int
  /// Reads, writes and synchronisations of files that ended.
  public internal(set) var diskCompletionCount: UInt64

  public internal(set) var tablePageCount: Int
  public internal(set) var tablePagesMax: Int
  public internal(set) var tablePageByteCount: Int
  public internal(set) var dirtyTablePageCount: Int

  /// Flushes that wrote something or made it durable.
  public internal(set) var flushCount: UInt64
  public internal(set) var allocationCount: UInt64
  public internal(set) var allocatedClusterCount: UInt64
  /// Those of them that were compressed, the bytes that they had and those that they take.
  public internal(set) var packedClusterCount: UInt64
  public internal(set) var unpackedByteCount: UInt64
  public internal(set) var packedByteCount: UInt64
  public internal(set) var spinHitCount: UInt64
  public internal(set) var spinMissCount: UInt64
}

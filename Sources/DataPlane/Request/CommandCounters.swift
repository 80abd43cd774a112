// SPDX-License-Identifier: Apache-2.0
//
// Requests by their outcome. This file performs no I/O.

/// What was done for the requests of one command. Requests count when they are answered.
public struct CommandCounters: Sendable {
  /// All that were answered, those with an error among them.
  public internal(set) var requestCount: UInt64 = 0
  /// Bytes of the disk that successful requests spanned.
  public internal(set) var byteCount: UInt64 = 0
  public internal(set) var errorCount: UInt64 = 0
}

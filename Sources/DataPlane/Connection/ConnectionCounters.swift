// SPDX-License-Identifier: Apache-2.0
//
// What a connection did. This file performs no I/O.

/// What a connection did since it began.
struct ConnectionCounters {
  var requestCount: UInt64 = 0
  var errorCount: UInt64 = 0
  var receivedByteCount: UInt64 = 0
  var sentByteCount: UInt64 = 0
}

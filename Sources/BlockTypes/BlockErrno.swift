// SPDX-License-Identifier: Apache-2.0
//
// The one error that crosses every layer of the data plane: trivial, stored in a request's slot,
// never thrown on the hot path. `NBDProtocol` maps it to the wire.

/// Why a request failed, or `none`.
@frozen public enum BlockErrno: UInt8, Sendable {
  case none = 0
  /// The medium failed, or the image is damaged at that place.
  case io
  /// No room is left where the image lives, or the request passes the end of the disk.
  case noSpace
  /// The request itself is malformed.
  case invalid
  /// The export cannot be written.
  case readOnly
  /// The fast way that the client insisted on does not exist here.
  case notSupported
  /// The answer does not fit.
  case overflow
  case noMemory
  /// The server is stopping.
  case shutdown
}

// SPDX-License-Identifier: Apache-2.0
//
// Why something cannot be done with a dirty bitmap. This file performs no I/O.

/// A refusal, as a sentence for whoever asked. Nothing was changed.
public struct BitmapFault: Error, Hashable, Sendable, CustomStringConvertible {
  public let reason: String

  @inline(never)
  public init(_ reason: String) { self.reason = reason }

  public var description: String { reason }
}

// SPDX-License-Identifier: Apache-2.0
//
// Why nothing was judged. This file performs no I/O.

/// Why a run cannot begin: a text that is no place, or a place where nobody answers.
public struct LintRefusal: Error, Hashable, Sendable, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

// SPDX-License-Identifier: Apache-2.0
//
// The image formats that Strata reads and writes. This file performs no I/O.

/// A format as the user names it and as a backing-format extension records it.
@frozen public enum ImageFormat: String, Sendable, Hashable, CaseIterable {
  case raw
  case qcow2
}

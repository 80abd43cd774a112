// SPDX-License-Identifier: Apache-2.0
//
// A change of the active layer's file that the data plane does not know how to make: who knows
// brings it, and the image stands still for it. This file performs no I/O.

import LinuxIO

/// A change of the file of the active layer, made while nothing else uses the file.
///
/// It may change tables, counts and the header, and must leave each guest byte where the tables led
/// to it. All that the export knows is in the file when it begins; afterwards tables are read anew.
public struct ImageEdit: Sendable {
  public enum Outcome: Sendable {
    /// What there is to tell of it.
    case done(String)
    /// Why not. The file holds the disk as it was, and at worst leaked clusters. `losesWrites`: a
    /// synchronisation failed, so that nobody knows what is durable.
    case failed(String, losesWrites: Bool = false)
  }

  /// Does it, on a thread that may block. The file goes through the page cache meanwhile.
  let perform: @Sendable (LayerFile) -> Outcome

  public init(_ perform: @escaping @Sendable (LayerFile) -> Outcome) { self.perform = perform }
}

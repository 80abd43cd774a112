// SPDX-License-Identifier: Apache-2.0
//
// What an export offers now, as its loop says and the reception reads. This file performs no I/O.

import NBDProtocol
import Synchronization

/// The description of one export, which may change while it is served: it grows, a dirty bitmap
/// comes or goes. Who negotiates sees what stood here when the client connected.
public final class ExportNotice: Sendable {
  private let description: Mutex<ExportDescription>

  public init(_ description: ExportDescription) { self.description = Mutex(description) }

  public var current: ExportDescription { description.withLock { $0 } }

  public func publish(_ new: ExportDescription) { description.withLock { $0 = new } }
}

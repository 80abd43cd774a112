// SPDX-License-Identifier: Apache-2.0
//
// Whom the control socket asks: the reception and the loops of the exports, each by its mailbox.
// This file performs no I/O.

import DataPlane

/// The mailboxes of a server.
struct OversightDesk: Sendable {
  let reception: Mailbox<ReceptionCommand>
  /// In the order of the exports.
  var exports: [(name: String, mailbox: Mailbox<ExportCommand>)] = []

  init(reception: Mailbox<ReceptionCommand>) { self.reception = reception }

  /// The export that a request means: the one it names, or the only one.
  func export(named name: String?) throws(RequestFault) -> Mailbox<ExportCommand> {
    guard let name else {
      guard exports.count == 1 else {
        throw RequestFault(
          reason: "there are \(exports.count) exports; say which: \"export\":\"NAME\"")
      }
      return exports[0].mailbox
    }
    guard let found = exports.first(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
      throw RequestFault(reason: "there is no export \(RequestMembers.shortened(name))")
    }
    return found.mailbox
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// EXPORT_NAME, INFO and GO: how a client learns about an export and enters it.
// Spec: proto.md, "NBD_OPT_EXPORT_NAME", "NBD_OPT_INFO", "NBD_OPT_GO". This file performs no I/O.

extension ServerHandshake {
  /// The export with this name; the empty name stands for the first one.
  ///
  /// Names are equal when their bytes are: Unicode's canonical equivalence does not count here.
  func exportIndex(named name: ArraySlice<UInt8>) -> Int? {
    if let index = exports.firstIndex(where: { name.elementsEqual($0.name.utf8) }) { return index }
    return name.isEmpty ? 0 : nil
  }

  /// The export with this name that the client may use.
  ///
  /// - Parameter tellsOfTLS: the option is one whose answer may be TLS_REQD. Then a name that does
  ///   not exist is answered like one that needs TLS, so that nobody finds out names without it.
  /// - Spec: proto.md, "SELECTIVETLS": TLS_REQD for INFO and GO, and for nothing else.
  func requireExport(
    named name: ArraySlice<UInt8>, tellsOfTLS: Bool = false
  ) throws(OptionError) -> Int {
    let index = exportIndex(named: name)
    switch index.map({ access[$0] }) {
    case .open: return index ?? 0
    case .refused(let reason): throw OptionError(.errPolicy, "not allowed: \(reason)")
    case .needsTLS, nil:
      let shown = ExportName.shown(name)
      guard tellsOfTLS, access.contains(.needsTLS) else {
        throw OptionError(.errUnknown, "export \"\(shown)\" is not known")
      }
      throw OptionError(.errTLSReqd, "without TLS there is no export \"\(shown)\"")
    }
  }

  /// Enters the export or closes: this option has no error reply.
  mutating func answerExportName(_ name: [UInt8]) {
    guard !isStopping else { return hangUp(.stopping) }
    guard framing != .extended else { return hangUp(.exportNameWithExtendedHeaders) }
    guard ExportName.isWellFormed(name) else { return hangUp(.malformedExportName) }
    guard let index = exportIndex(named: name[...]) else {
      return hangUp(.unknownExport(shownName: ExportName.shown(name)))
    }
    switch access[index] {
    case .open: break
    case .needsTLS: return hangUp(.exportNeedsTLS)
    case .refused(let reason): return hangUp(.clientRefused(reason: reason))
    }
    output.append(contentsOf: exports[index].sizeAndFlags(flags(of: index)))
    if !sendsNoZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
    enter(index, blockSizesAgreed: false)
  }

  /// Tells about the export; GO then enters it.
  mutating func answerInfo(
    _ header: OptionHeader, payload: [UInt8], entersTransmission: Bool
  ) {
    do throws(OptionError) {
      let request = try InfoRequest(decoding: payload)
      let index = try requireExport(named: request.name, tellsOfTLS: true)
      let infos = exports[index].infoPayloads(for: request, flags: flags(of: index))
      for info in infos { reply(.info, to: header, payload: info) }
      reply(.ack, to: header)
      if entersTransmission { enter(index, blockSizesAgreed: request.asksForBlockSize) }
    } catch {
      reply(error, to: header)
    }
  }

  /// The contexts selected for an export: the last SET_META_CONTEXT has to mean this one.
  private func contexts(of index: Int) -> MetaContextSet {
    guard let selection, selection.exportIndex == index else { return [] }
    return selection.contexts
  }

  /// What this client may use of an export, as far as is known before it enters.
  ///
  /// The filter of BLOCK_STATUS is told only to those who can use it: they speak extended headers
  /// and have selected contexts of this export.
  private func flags(of index: Int) -> TransmissionFlags {
    exports[index].traits.transmissionFlags(
      structuredReplies: framing.hasChunks,
      statusPayload: framing == .extended && !contexts(of: index).isEmpty)
  }

  /// Ends the handshake.
  mutating func enter(_ index: Int, blockSizesAgreed: Bool) {
    precondition(
      refusal == nil && access[index] == .open && (isSecure || tlsPolicy != .required),
      "a client passed the barrier of an export")
    outcome = .ready(
      Negotiated(
        exportIndex: index, structuredReplies: framing.hasChunks,
        extendedHeaders: framing == .extended, contexts: contexts(of: index),
        blockSizesAgreed: blockSizesAgreed, revision: exports[index].revision))
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// LIST_META_CONTEXT and SET_META_CONTEXT. Spec: proto.md, "NBD_OPT_LIST_META_CONTEXT",
// "NBD_OPT_SET_META_CONTEXT". This file performs no I/O.

extension ServerHandshake {
  /// Shows the contexts of an export; also before structured replies, as QEMU does.
  mutating func answerListMetaContext(_ header: OptionHeader, payload: [UInt8]) {
    do throws(OptionError) {
      let request = try MetaContextRequest(decoding: payload)
      let index = try requireExport(named: request.name)
      for context in request.listed(of: exports[index].contexts) {
        replyMetaContext(context, id: 0, to: header)  // the id is reserved here
      }
      reply(.ack, to: header)
    } catch {
      reply(error, to: header)
    }
  }

  /// Selects contexts. The caller has forgotten the earlier selection: a failure leaves none.
  mutating func answerSetMetaContext(_ header: OptionHeader, payload: [UInt8]) {
    do throws(OptionError) {
      guard framing.hasChunks else {
        throw OptionError(
          .errInvalid, "structured replies or extended headers must be negotiated first")
      }
      let request = try MetaContextRequest(decoding: payload)
      let index = try requireExport(named: request.name)
      var contexts: MetaContextSet = []
      for context in request.selected(of: exports[index].contexts) {
        contexts.insert(MetaContextSet(context))
        replyMetaContext(context, id: context.wireID, to: header)
      }
      selection = (exportIndex: index, contexts: contexts)
      reply(.ack, to: header)
    } catch {
      reply(error, to: header)
    }
  }

  private mutating func replyMetaContext(
    _ context: MetaContext, id: UInt32, to header: OptionHeader
  ) {
    var payload: [UInt8] = []
    payload.appendBigEndian(id)
    payload.append(contentsOf: context.name.utf8)
    reply(.metaContext, to: header, payload: payload)
  }
}

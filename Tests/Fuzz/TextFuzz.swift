// SPDX-License-Identifier: Apache-2.0
//
// Texts from outside: addresses of exports, and lines of the control socket.
// Source: uri.md of the NBD project; RFC 8259.

import NBDProtocol

func fuzzAddress(_ bytes: [UInt8]) {
  let text = String(decoding: bytes, as: UTF8.self)
  _ = NBDURI.looksLike(text)
  let uri: NBDURI
  do throws(NBDURIFault) {
    uri = try NBDURI(text)
  } catch {
    require(!error.description.isEmpty, "a fault without words")
    return
  }
  do throws(NBDURIFault) {
    require(try NBDURI(uri.description) == uri, "\(uri) is another address than \(text)")
  } catch {
    fatalError("\(uri) is refused, and came from \(text): \(error)")
  }
  require(uri.exportName.utf8.count <= ExportName.byteCountMax, "a long name")
}

func fuzzJSON(_ bytes: [UInt8]) {
  let value: JSONValue
  do throws(JSONFault) {
    value = try JSONReader.read(bytes)
  } catch {
    require((0...bytes.count).contains(error.offset), "a fault outside the text")
    require(!error.reason.isEmpty, "a fault without words")
    return
  }
  require(depth(of: value) <= JSONReader.depthMax + 1, "too deep")
  // What is read again in other places of a text means the same.
  do throws(JSONFault) {
    let spaced = [0x20, 0x0a] + bytes + [0x09]
    require(try JSONReader.read(spaced) == value, "blanks change the meaning")
  } catch {
    fatalError("blanks are refused: \(error)")
  }
}

/// Levels of `value`; the reader bounds them, so this may recurse.
private func depth(of value: JSONValue) -> Int {
  switch value {
  case .object(let members): 1 + (members.values.map { depth(of: $0) }.max() ?? 0)
  case .array(let elements): 1 + (elements.map { depth(of: $0) }.max() ?? 0)
  case .string, .integer, .bool, .null: 1
  }
}

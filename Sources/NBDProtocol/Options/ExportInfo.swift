// SPDX-License-Identifier: Apache-2.0
//
// The request of INFO and GO, and the information that answers it.
// Spec: proto.md, "NBD_OPT_INFO, NBD_OPT_GO" and "NBD_INFO_EXPORT". This file performs no I/O.

/// The kinds of information about an export.
enum InfoType: UInt16, Sendable {
  case export = 0
  case name = 1
  case description = 2
  case blockSize = 3
}

/// The data of INFO or GO.
struct InfoRequest: Hashable, Sendable {
  let name: ArraySlice<UInt8>
  private(set) var asksForName = false
  private(set) var asksForBlockSize = false

  /// Decodes `payload`: a name, a count, and as many types as it says, and nothing else.
  ///
  /// Types that the specification does not define are ignored, as it demands.
  init(decoding payload: [UInt8]) throws(OptionError) {
    var reader = PayloadReader(payload)
    guard let name = reader.readCountedBytes() else {
      throw OptionError(.errInvalid, "the export name passes the end of the option")
    }
    guard ExportName.isWellFormed(name) else {
      throw OptionError(.errInvalid, "the export name is not a string of at most 4096 bytes")
    }
    guard let count = reader.readInteger(UInt16.self) else {
      throw OptionError(.errInvalid, "the option ends before its count of information requests")
    }
    self.name = name
    for _ in 0..<count {
      guard let type = reader.readInteger(UInt16.self) else {
        throw OptionError(.errInvalid, "the option ends before its last information request")
      }
      switch InfoType(rawValue: type) {
      case .name: asksForName = true
      case .blockSize: asksForBlockSize = true
      case .export, .description, nil: break  // sent anyway, or unknown
      }
    }
    guard reader.isAtEnd else {
      throw OptionError(.errInvalid, "bytes follow the last information request")
    }
  }
}

extension ExportDescription {
  /// The 10 bytes that describe this export to EXPORT_NAME and, behind a type, to INFO and GO.
  func sizeAndFlags(_ flags: TransmissionFlags) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(traits.byteCount)
    bytes.appendBigEndian(flags.rawValue)
    return bytes
  }

  /// The payloads of the INFO replies to `request`, in the order in which they are sent.
  ///
  /// Block sizes are told unasked too, but then as what such a client may rely on: minimum 1.
  func infoPayloads(for request: InfoRequest, flags: TransmissionFlags) -> [[UInt8]] {
    var payloads = [InfoType.export.payload(sizeAndFlags(flags))]
    if request.asksForName { payloads.append(InfoType.name.payload(Array(name.utf8))) }
    if !description.isEmpty {
      payloads.append(InfoType.description.payload(Array(description.utf8)))
    }
    var sizes: [UInt8] = []
    sizes.appendBigEndian(request.asksForBlockSize ? traits.minimumBlockByteCount : 1)
    sizes.appendBigEndian(traits.preferredBlockByteCount)
    sizes.appendBigEndian(traits.maximumPayloadByteCount)
    payloads.append(InfoType.blockSize.payload(sizes))
    return payloads
  }
}

extension InfoType {
  fileprivate func payload(_ rest: [UInt8]) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBigEndian(rawValue)
    bytes.append(contentsOf: rest)
    return bytes
  }
}

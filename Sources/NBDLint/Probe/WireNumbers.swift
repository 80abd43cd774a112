// SPDX-License-Identifier: Apache-2.0
//
// The numbers of the protocol, written down a second time: a judge that shares them with the
// server would share its mistakes. Spec: proto.md, "Values". This file performs no I/O.

enum Option {
  static let exportName: UInt32 = 1
  static let abort: UInt32 = 2
  static let list: UInt32 = 3
  static let peekExport: UInt32 = 4
  static let startTLS: UInt32 = 5
  static let info: UInt32 = 6
  static let go: UInt32 = 7
  static let structuredReply: UInt32 = 8
  static let listMeta: UInt32 = 9
  static let setMeta: UInt32 = 10
  static let extendedHeaders: UInt32 = 11
  /// A number that no document gives a meaning to.
  static let unknown: UInt32 = 0x00ab_cdef
}

enum Reply {
  static let ack: UInt32 = 1
  static let server: UInt32 = 2
  static let info: UInt32 = 3
  static let metaContext: UInt32 = 4
  static let unsup: UInt32 = 0x8000_0001
  static let policy: UInt32 = 0x8000_0002
  static let invalid: UInt32 = 0x8000_0003
  static let platform: UInt32 = 0x8000_0004
  static let tlsRequired: UInt32 = 0x8000_0005
  static let unknown: UInt32 = 0x8000_0006
  static let shutdown: UInt32 = 0x8000_0007
  static let blockSizeRequired: UInt32 = 0x8000_0008
  static let tooBig: UInt32 = 0x8000_0009
  static let extendedHeadersRequired: UInt32 = 0x8000_000a

  private static let names: [UInt32: String] = [
    ack: "ACK", server: "SERVER", info: "INFO", metaContext: "META_CONTEXT", unsup: "ERR_UNSUP",
    policy: "ERR_POLICY", invalid: "ERR_INVALID", platform: "ERR_PLATFORM",
    tlsRequired: "ERR_TLS_REQD", unknown: "ERR_UNKNOWN", shutdown: "ERR_SHUTDOWN",
    blockSizeRequired: "ERR_BLOCK_SIZE_REQD", tooBig: "ERR_TOO_BIG",
    extendedHeadersRequired: "ERR_EXT_HEADER_REQD",
  ]

  static func name(_ type: UInt32) -> String {
    names[type] ?? "reply type 0x\(String(type, radix: 16))"
  }
}

enum Info {
  static let export: UInt16 = 0
  static let name: UInt16 = 1
  static let description: UInt16 = 2
  static let blockSize: UInt16 = 3
}

enum Command {
  static let read: UInt16 = 0
  static let write: UInt16 = 1
  static let disconnect: UInt16 = 2
  static let flush: UInt16 = 3
  static let trim: UInt16 = 4
  static let cache: UInt16 = 5
  static let writeZeroes: UInt16 = 6
  static let blockStatus: UInt16 = 7
  /// A number that no document gives a meaning to.
  static let unknown: UInt16 = 0x0f17
}

enum CommandFlag {
  static let fua: UInt16 = 1 << 0
  static let noHole: UInt16 = 1 << 1
  static let dontFragment: UInt16 = 1 << 2
  static let requestOne: UInt16 = 1 << 3
  static let fastZero: UInt16 = 1 << 4
  static let payloadLength: UInt16 = 1 << 5
  /// A bit that no document gives a meaning to.
  static let unknown: UInt16 = 1 << 14
}

enum ExportFlag {
  static let hasFlags: UInt16 = 1 << 0
  static let readOnly: UInt16 = 1 << 1
  static let sendFlush: UInt16 = 1 << 2
  static let sendFUA: UInt16 = 1 << 3
  static let rotational: UInt16 = 1 << 4
  static let sendTrim: UInt16 = 1 << 5
  static let sendWriteZeroes: UInt16 = 1 << 6
  static let sendDF: UInt16 = 1 << 7
  static let canMultiConn: UInt16 = 1 << 8
  static let sendCache: UInt16 = 1 << 10
  static let sendFastZero: UInt16 = 1 << 11
  static let payload: UInt16 = 1 << 12
  /// Bits 13 to 15, which are not defined.
  static let reserved: UInt16 = 0xe000
}

enum Errno {
  static let none: UInt32 = 0
  static let notPermitted: UInt32 = 1
  static let io: UInt32 = 5
  static let noMemory: UInt32 = 12
  static let invalid: UInt32 = 22
  static let noSpace: UInt32 = 28
  static let overflow: UInt32 = 75
  static let notSupported: UInt32 = 95
  static let shutdown: UInt32 = 108

  static let names: [UInt32: String] = [
    none: "success", notPermitted: "EPERM", io: "EIO", noMemory: "ENOMEM", invalid: "EINVAL",
    noSpace: "ENOSPC", overflow: "EOVERFLOW", notSupported: "ENOTSUP", shutdown: "ESHUTDOWN",
  ]

  static func name(_ number: UInt32) -> String { names[number] ?? "error \(number)" }
}

/// The magic numbers of the transmission phase.
enum ProbeMagic {
  static let greeting: UInt64 = 0x4e42_444d_4147_4943
  static let option: UInt64 = 0x4948_4156_454f_5054
  static let optionReply: UInt64 = 0x0003_e889_0455_65a9
  static let request: UInt32 = 0x2560_9513
  static let extendedRequest: UInt32 = 0x21e4_1c71
  static let simpleReply: UInt32 = 0x6744_6698
  static let chunk: UInt32 = 0x668e_33ef
  static let extendedChunk: UInt32 = 0x6e8a_278c
}

// SPDX-License-Identifier: Apache-2.0
//
// What a server would send, byte by byte, for the tests of the client's machines.
// Spec: proto.md, "Handshake phase", "Transmission phase". This file performs no I/O.

import NBDProtocol

func greeting(_ flags: UInt16 = 3) -> [UInt8] {
  Array("NBDMAGICIHAVEOPT".utf8) + bigEndian(flags)
}

/// An option reply with its header.
func optionReply(
  _ option: UInt32, _ type: UInt32, _ payload: [UInt8] = [], announcing byteCount: UInt32? = nil
) -> [UInt8] {
  bigEndian(UInt64(0x0003_e889_0455_65a9)) + bigEndian(option) + bigEndian(type)
    + bigEndian(byteCount ?? UInt32(payload.count)) + payload
}

func exportInfo(_ byteCount: UInt64, flags: UInt16 = 0x0ded) -> [UInt8] {
  bigEndian(UInt16(0)) + bigEndian(byteCount) + bigEndian(flags)
}

func blockInfo(_ minimum: UInt32, _ preferred: UInt32, _ maximum: UInt32) -> [UInt8] {
  bigEndian(UInt16(3)) + bigEndian(minimum) + bigEndian(preferred) + bigEndian(maximum)
}

func contextReply(_ option: UInt32, _ id: UInt32, _ name: String) -> [UInt8] {
  optionReply(option, ReplyType.metaContext, bigEndian(id) + Array(name.utf8))
}

func simpleReply(_ cookie: UInt64, error: UInt32 = 0, data: [UInt8] = []) -> [UInt8] {
  bigEndian(UInt32(0x6744_6698)) + bigEndian(error) + bigEndian(cookie) + data
}

/// A structured chunk.
func chunk(
  _ cookie: UInt64, _ type: UInt16, _ payload: [UInt8] = [], flags: UInt16 = 1,
  announcing byteCount: UInt32? = nil
) -> [UInt8] {
  bigEndian(UInt32(0x668e_33ef)) + bigEndian(flags) + bigEndian(type) + bigEndian(cookie)
    + bigEndian(byteCount ?? UInt32(payload.count)) + payload
}

/// An extended chunk.
func extendedChunk(
  _ cookie: UInt64, _ type: UInt16, _ payload: [UInt8] = [], offset: UInt64, flags: UInt16 = 1,
  announcing byteCount: UInt64? = nil
) -> [UInt8] {
  bigEndian(UInt32(0x6e8a_278c)) + bigEndian(flags) + bigEndian(type) + bigEndian(cookie)
    + bigEndian(offset) + bigEndian(byteCount ?? UInt64(payload.count)) + payload
}

func dataPayload(_ offset: UInt64, _ bytes: [UInt8]) -> [UInt8] { bigEndian(offset) + bytes }

func holePayload(_ offset: UInt64, _ byteCount: UInt32) -> [UInt8] {
  bigEndian(offset) + bigEndian(byteCount)
}

func errorPayload(_ number: UInt32, _ text: String = "", at offset: UInt64? = nil) -> [UInt8] {
  bigEndian(number) + bigEndian(UInt16(text.utf8.count)) + Array(text.utf8)
    + (offset.map { bigEndian($0) } ?? [])
}

func extentPayload(_ id: UInt32, _ extents: (UInt32, UInt32)...) -> [UInt8] {
  bigEndian(id) + extents.flatMap { bigEndian($0.0) + bigEndian($0.1) }
}

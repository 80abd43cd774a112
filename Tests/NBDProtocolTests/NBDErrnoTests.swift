// SPDX-License-Identifier: Apache-2.0
//
// The data plane's errors on the wire. Spec: proto.md, "Error values".

import BlockTypes
import NBDProtocol
import Testing

@Suite struct `an error on the wire` {
  @Test func `has the specification's number`() {  // proto.md "Error values"
    let numbers: [NBDErrno] = [
      .none, .EPERM, .EIO, .ENOMEM, .EINVAL, .ENOSPC, .EOVERFLOW, .ENOTSUP, .ESHUTDOWN,
    ]
    #expect(numbers.map(\.rawValue) == [0, 1, 5, 12, 22, 28, 75, 95, 108])
  }

  @Test(
    arguments: [
      (.none, .none), (.io, .EIO), (.noSpace, .ENOSPC), (.invalid, .EINVAL), (.readOnly, .EPERM),
      (.noMemory, .ENOMEM), (.shutdown, .ESHUTDOWN),
    ] as [(BlockErrno, NBDErrno)])
  func `is the same for every command`(_ error: BlockErrno, _ expected: NBDErrno) {
    for number in 0...8 {
      let command = Command(rawValue: UInt16(number))
      #expect(NBDErrno(error, for: command, flags: []) == expected)
    }
    #expect(NBDErrno(error, for: nil, flags: []) == expected)
  }

  @Test func `is ENOTSUP only for WRITE_ZEROES with FAST_ZERO`() {
    // proto.md "Error values": NBD_ENOTSUP
    #expect(NBDErrno(.notSupported, for: .writeZeroes, flags: .fastZero) == .ENOTSUP)
    #expect(NBDErrno(.notSupported, for: .writeZeroes, flags: [.fastZero, .fua]) == .ENOTSUP)
    #expect(NBDErrno(.notSupported, for: .writeZeroes, flags: []) == .EINVAL)
    #expect(NBDErrno(.notSupported, for: .trim, flags: .fastZero) == .EINVAL)
  }

  @Test func `is EOVERFLOW only for READ with DF`() {  // proto.md "Error values": NBD_EOVERFLOW
    #expect(NBDErrno(.overflow, for: .read, flags: .dontFragment) == .EOVERFLOW)
    #expect(NBDErrno(.overflow, for: .read, flags: []) == .EINVAL)
    #expect(NBDErrno(.overflow, for: .blockStatus, flags: .dontFragment) == .EINVAL)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The magic numbers of NBD. Spec: proto.md, "Newstyle negotiation", "Request message",
// "Simple reply message", "Structured reply chunk message"; its extension-ext-header branch for
// the two extended ones. This file performs no I/O.

/// The magic numbers that start each kind of message; all are sent big-endian.
@frozen public enum Magic {
  /// `NBDMAGIC`: the first eight bytes of a greeting.
  @inlinable public static var greeting: UInt64 { 0x4e42_444d_4147_4943 }
  /// `IHAVEOPT`: the second eight bytes of a newstyle greeting, and the start of each option.
  @inlinable public static var option: UInt64 { 0x4948_4156_454f_5054 }
  /// The second eight bytes of an oldstyle greeting.
  @inlinable public static var oldstyle: UInt64 { 0x0000_4202_8186_1253 }
  @inlinable public static var optionReply: UInt64 { 0x0003_e889_0455_65a9 }
  @inlinable public static var request: UInt32 { 0x2560_9513 }
  @inlinable public static var extendedRequest: UInt32 { 0x21e4_1c71 }
  @inlinable public static var simpleReply: UInt32 { 0x6744_6698 }
  @inlinable public static var structuredReply: UInt32 { 0x668e_33ef }
  @inlinable public static var extendedReply: UInt32 { 0x6e8a_278c }
}

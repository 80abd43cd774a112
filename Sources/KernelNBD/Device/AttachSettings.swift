// SPDX-License-Identifier: Apache-2.0
//
// What the kernel is told about a disk: decided from what the server said and what the user wants.
// Source: proto.md, "Size constraints", "Transmission flags"; linux/nbd.h.
// This file performs no I/O.

import NBDProtocol

/// The properties of a device, checked.
public struct AttachSettings: Hashable, Sendable {
  /// What the user asked for; nil leaves the choice to the server or to the kernel.
  public struct Wishes: Hashable, Sendable {
    public var device: DeviceName?
    public var connectionCount = 1
    public var blockByteCount: UInt64?
    public var isReadOnly = false
    /// Seconds after which a request that was not answered counts as lost.
    public var timeoutSeconds: UInt32?
    /// Seconds for which requests wait for new connections when all are lost.
    public var deadConnectionSeconds: UInt32?
    public var identifier: String?

    public init() {}
  }

  /// Connections of one device.
  public static let connectionsMax = 64
  /// Bytes of an identifier: it is read back from a file of sysfs, which is one page long.
  public static let identifierByteCountMax = 255
  /// What the driver sends at once, unless its queue's settings are changed.
  public static let payloadByteCountMax: UInt32 = 128 << 10
  static let sectorByteCount: UInt64 = 512

  public let index: UInt32?
  public let byteCount: UInt64
  public let blockByteCount: UInt32
  public let flags: TransmissionFlags
  public let timeoutSeconds: UInt32?
  public let deadConnectionSeconds: UInt32?
  public let identifier: String?

  /// Decides for `export`.
  ///
  /// - Parameter pageByteCount: the kernel's blocks are no larger than its pages.
  public init(
    _ export: ExportDetails, _ wishes: Wishes, pageByteCount: Int
  ) throws(AttachFault) {
    precondition((1...Self.connectionsMax).contains(wishes.connectionCount), "no such count")
    let minimum = UInt64(export.minimumBlockByteCount)
    let block = wishes.blockByteCount ?? max(minimum, Self.sectorByteCount)
    guard block.nonzeroBitCount == 1, (512...UInt64(pageByteCount)).contains(block) else {
      throw wishes.blockByteCount == nil
        ? .unfit("its blocks have \(block) bytes, and those of the kernel at most \(pageByteCount)")
        : .unfit("--block-size \(block) is no power of two from 512 to \(pageByteCount)")
    }
    guard block >= minimum else {
      throw .unfit("--block-size \(block) is below the \(minimum) bytes of the export's blocks")
    }
    let byteCount = export.byteCount ?? 0
    guard byteCount > 0 else { throw .unfit("the export is empty") }
    guard byteCount % block == 0 else {
      throw .unfit("its \(byteCount) bytes are not a multiple of the block size of \(block)")
    }
    if let sizes = export.blockSizes {
      guard sizes.maximum >= Self.payloadByteCountMax else {
        throw .unfit(
          "it takes requests of \(sizes.maximum) bytes at most, and the kernel sends up to"
            + " \(Self.payloadByteCountMax)")
      }
    }
    guard wishes.connectionCount == 1 || export.flags.contains(.canMultiConn) else {
      throw .unfit(
        "--connections \(wishes.connectionCount): the server does not offer several connections"
          + " to this export (CAN_MULTI_CONN)")
    }
    index = wishes.device?.index
    self.byteCount = byteCount
    blockByteCount = UInt32(block)
    flags = export.flags.union(wishes.isReadOnly ? [.hasFlags, .readOnly] : .hasFlags)
    timeoutSeconds = wishes.timeoutSeconds
    deadConnectionSeconds = wishes.deadConnectionSeconds
    identifier = wishes.identifier
  }
}

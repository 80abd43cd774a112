// SPDX-License-Identifier: Apache-2.0
//
// The commands of the kernel's nbd driver, and the question for its number, as messages.
// Source: linux/nbd-netlink.h, linux/genetlink.h (CTRL_CMD_GETFAMILY). This file performs no I/O.

/// A family of generic netlink: what its messages are marked with, and how much it understands.
struct NetlinkFamily: Hashable {
  /// The family that knows the others; it has a number of its own from the start.
  static let controlType: UInt16 = 0x10
  private static let newFamily: UInt8 = 1
  private static let getFamily: UInt8 = 3

  let type: UInt16
  /// The highest attribute that the driver knows; older drivers know fewer.
  let attributeMax: UInt32

  /// The question for the family `name`.
  static func question(_ name: String, sequence: UInt32) -> NetlinkMessage {
    var message = NetlinkMessage(
      type: controlType, command: getFamily, version: 1, sequence: sequence)
    message.append(2, text: name)  // CTRL_ATTR_FAMILY_NAME
    return message
  }

  init(type: UInt16, attributeMax: UInt32) {
    self.type = type
    self.attributeMax = attributeMax
  }

  /// Reads the answer.
  init(_ answers: [NetlinkAnswer]) throws(NetlinkFault) {
    for answer in answers {
      guard case .message(_, Self.controlType, Self.newFamily, let attributes) = answer else {
        continue
      }
      var type: UInt16?
      var attributeMax: UInt32 = 0
      for attribute in attributes {
        switch attribute.type {
        case 1: type = try attribute.number(UInt16.self)  // CTRL_ATTR_FAMILY_ID
        case 5: attributeMax = try attribute.number(UInt32.self)  // CTRL_ATTR_MAXATTR
        default: continue
        }
      }
      guard let type else { throw .missing("the number of the family") }
      self.init(type: type, attributeMax: attributeMax)
      return
    }
    throw .missing("the description of the family")
  }
}

/// A command of the nbd family.
enum NBDCommand: UInt8 {
  static let familyName = "nbd"
  private static let version: UInt8 = 1

  case connect = 1
  case disconnect = 2
  case reconfigure = 3
  case status = 5

  /// Attributes of CONNECT and RECONFIGURE.
  enum Attribute {
    static let index: UInt16 = 1
    static let sizeBytes: UInt16 = 2
    static let blockSizeBytes: UInt16 = 3
    static let timeout: UInt16 = 4
    static let serverFlags: UInt16 = 5
    static let sockets: UInt16 = 7
    static let deadConnectionTimeout: UInt16 = 8
    static let deviceList: UInt16 = 9
    static let backendIdentifier: UInt16 = 10
  }

  /// CONNECT: a device for `settings`, made of connected sockets whose handshakes are done.
  static func connect(
    _ settings: AttachSettings, sockets: [Int32], _ family: NetlinkFamily, sequence: UInt32
  ) -> NetlinkMessage {
    var message = NBDCommand.connect.message(family, sequence)
    if let index = settings.index { message.append(Attribute.index, index) }
    message.append(Attribute.sizeBytes, settings.byteCount)
    message.append(Attribute.blockSizeBytes, UInt64(settings.blockByteCount))
    message.append(Attribute.serverFlags, UInt64(settings.flags.rawValue))
    message.appendWishes(settings)
    message.appendSockets(sockets)
    return message
  }

  /// RECONFIGURE: new sockets in place of the dead ones of device `index`, and its size now.
  static func reconfigure(
    _ index: UInt32, _ settings: AttachSettings, sockets: [Int32], _ family: NetlinkFamily,
    sequence: UInt32
  ) -> NetlinkMessage {
    var message = NBDCommand.reconfigure.message(family, sequence)
    message.append(Attribute.index, index)
    message.append(Attribute.sizeBytes, settings.byteCount)
    message.appendWishes(settings)
    message.appendSockets(sockets)
    return message
  }

  static func disconnect(
    _ index: UInt32, _ family: NetlinkFamily, sequence: UInt32
  ) -> NetlinkMessage {
    var message = NBDCommand.disconnect.message(family, sequence)
    message.append(Attribute.index, index)
    return message
  }

  static func status(
    _ index: UInt32, _ family: NetlinkFamily, sequence: UInt32
  ) -> NetlinkMessage {
    var message = NBDCommand.status.message(family, sequence)
    message.append(Attribute.index, index)
    return message
  }

  private func message(_ family: NetlinkFamily, _ sequence: UInt32) -> NetlinkMessage {
    NetlinkMessage(
      type: family.type, command: rawValue, version: Self.version, sequence: sequence)
  }

  /// The device that CONNECT made.
  static func connectedIndex(
    _ answers: [NetlinkAnswer], _ family: NetlinkFamily
  ) throws(NetlinkFault) -> UInt32 {
    for answer in answers {
      guard case .message(_, family.type, NBDCommand.connect.rawValue, let attributes) = answer,
        let index = attributes.first(where: { $0.type == Attribute.index })
      else { continue }
      return try index.number(UInt32.self)
    }
    throw .missing("the number of the device")
  }

  /// Whether the answer to STATUS calls the device in use; nil when it does not mention it.
  static func isConnected(
    _ index: UInt32, _ answers: [NetlinkAnswer], _ family: NetlinkFamily
  ) throws(NetlinkFault) -> Bool? {
    for answer in answers {
      guard case .message(_, family.type, NBDCommand.status.rawValue, let attributes) = answer,
        let list = attributes.first(where: { $0.type == Attribute.deviceList })
      else { continue }
      for item in try list.nested() where item.type == 1 {  // NBD_DEVICE_ITEM
        let fields = try item.nested()
        guard let number = fields.first(where: { $0.type == 1 }),  // NBD_DEVICE_INDEX
          let connected = fields.first(where: { $0.type == 2 })  // NBD_DEVICE_CONNECTED
        else { throw .missing("a device's number or state") }
        if try number.number(UInt32.self) == index {
          return try connected.number(UInt8.self) != 0
        }
      }
    }
    return nil
  }
}

extension NetlinkMessage {
  fileprivate mutating func appendWishes(_ settings: AttachSettings) {
    if let seconds = settings.timeoutSeconds {
      append(NBDCommand.Attribute.timeout, UInt64(seconds))
    }
    if let seconds = settings.deadConnectionSeconds {
      append(NBDCommand.Attribute.deadConnectionTimeout, UInt64(seconds))
    }
    if let identifier = settings.identifier {
      append(NBDCommand.Attribute.backendIdentifier, text: identifier)
    }
  }

  /// Each socket is an item with a descriptor inside; the kernel takes a reference of its own.
  fileprivate mutating func appendSockets(_ sockets: [Int32]) {
    append(NBDCommand.Attribute.sockets) { list in
      for socket in sockets {
        list.append(1) { item in  // NBD_SOCK_ITEM
          item.append(1, UInt32(bitPattern: socket))  // NBD_SOCK_FD
        }
      }
    }
  }
}

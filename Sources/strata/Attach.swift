// SPDX-License-Identifier: Apache-2.0
//
// `strata attach`: an export of any NBD server as a disk of this machine's kernel.

import ArgumentParser
import Control
import KernelNBD
import LinuxIO
import NBDClient
import NBDProtocol

struct Attach: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make an export a disk of this machine (/dev/nbdN).",
    discussion: """
      Prints the name of the device. The kernel's driver has to be there ('modprobe nbd'), and \
      only root may attach.

      The kernel speaks to the server itself, so nothing stays behind. With TLS (nbds:), which the \
      kernel does not know, over vsock, and with --ioctl or a driver without netlink, a process of \
      strata stays in the background for as long as the disk is attached.

        strata attach 'nbd+unix:///?socket=/run/vm1.sock' /dev/nbd0
        strata detach /dev/nbd0
      """)

  @Option(
    help: ArgumentHelp(
      "Connections to the server, where it offers several.", valueName: "count"))
  var connections = 1

  @Option(
    help: ArgumentHelp(
      "Bytes of the disk's blocks: 512, or the server's if they are larger, unless said.",
      valueName: "size"))
  var blockSize: String?

  @Flag(help: "Make a disk that cannot be written.")
  var readOnly = false

  @Option(
    help: ArgumentHelp(
      "A request without an answer for so long counts as lost.", valueName: "seconds"))
  var timeout: Int?

  @Option(
    help: ArgumentHelp(
      "When all connections are lost, requests wait for new ones for so long.",
      valueName: "seconds"))
  var deadConnectionTimeout: Int?

  @Option(
    help: ArgumentHelp(
      "What the disk is; new connections have to say the same.", valueName: "text"))
  var identifier: String?

  @Flag(help: "Give an attached disk new connections for those that are lost.")
  var reconfigure = false

  @Flag(help: "Use the driver's ioctls and not its netlink.")
  var ioctl = false

  @Flag(help: "Carry the bytes through a process of strata, as it is done for TLS.")
  var proxy = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "The export.")
  var uri: String

  @Argument(help: "The device, such as /dev/nbd0; the kernel's choice unless said.")
  var device: String?

  private static let secondsMax = 7 * 86_400

  func validate() throws {
    guard (1...AttachSettings.connectionsMax).contains(connections) else {
      throw ValidationError(
        "--connections is a number from 1 to \(AttachSettings.connectionsMax).")
    }
    for (name, seconds) in [
      ("--timeout", timeout), ("--dead-connection-timeout", deadConnectionTimeout),
    ] {
      guard let seconds else { continue }
      guard (1...Self.secondsMax).contains(seconds) else {
        throw ValidationError("\(name) is a number of seconds from 1 to \(Self.secondsMax).")
      }
    }
    if let identifier {
      guard (1...AttachSettings.identifierByteCountMax).contains(identifier.utf8.count),
        identifier.unicodeScalars.allSatisfy({ $0.value >= 0x20 && $0.value != 0x7f })
      else {
        throw ValidationError(
          "--identifier has 1 to \(AttachSettings.identifierByteCountMax) bytes, and no control"
            + " characters.")
      }
    }
    guard !reconfigure || device != nil else {
      throw ValidationError("--reconfigure needs the name of the device.")
    }
    guard !reconfigure || (blockSize == nil && !readOnly) else {
      throw ValidationError("--reconfigure does not change --block-size or --read-only.")
    }
    guard !ioctl || !(reconfigure || identifier != nil || deadConnectionTimeout != nil) else {
      throw ValidationError(
        "--reconfigure, --identifier and --dead-connection-timeout need netlink, not --ioctl.")
    }
  }

  func run() throws {
    let uri = try parseURI(uri)
    var wishes = AttachSettings.Wishes()
    wishes.device = try device.map(parseDevice)
    wishes.connectionCount = connections
    wishes.blockByteCount = try blockSize.map { try parseSize($0, of: "--block-size") }
    wishes.isReadOnly = readOnly
    wishes.timeoutSeconds = timeout.map { UInt32($0) }
    wishes.deadConnectionSeconds = deadConnectionTimeout.map { UInt32($0) }
    wishes.identifier = identifier
    // The kernel first: without its driver the server need not be troubled.
    let driver = try about(wishes.device) { () throws(AttachFault) in
      guard ioctl else { return try NetlinkDriver.find() }
      try IoctlDevice.requireDriver()
      return nil
    }
    guard driver != nil || !reconfigure else {
      throw ControlError(
        "--reconfigure", "this kernel's nbd driver has no netlink",
        wayOut: "detach the device, and attach it again")
    }
    var options = connect.options(contexts: .none)
    // What the kernel speaks: it asks for nothing else, and would not understand it.
    options.modeMax = .simple
    let attachment = Attachment(
      uri: uri, options: options, wishes: wishes, isReconfiguring: reconfigure,
      isRelayed: try proxy || mayEncrypt(uri) || uri.isVsock, driver: driver)
    guard attachment.isRelayed || driver == nil else {
      return try attachment.run { device in print(device) }
    }
    switch try Background.enter() {
    case .parent(let exitStatus): throw ExitCode(exitStatus)
    case .child(let ready):
      Environment.ignoreStraySignals()
      Environment.becomeDiskServer()
      try attachment.run { device in
        try TextOutput.standardOutput.writeLine("\(device)")
        try ready.write("\n")
        ready.close()
        try Environment.closeStandardStreams()
        try Environment.leaveFolder()
      }
    }
  }
}

extension Attach {
  /// Whether a connection to `uri` may have TLS; also says what is wrong with the options for it.
  private func mayEncrypt(_ uri: NBDURI) throws -> Bool {
    do throws(NBDClientFault) {
      return try connect.tls.wishes.use(for: uri) != .off
    } catch {
      throw ControlError("\(uri)", "\(error)")
    }
  }
}

/// Parses a device that was given on the command line.
func parseDevice(_ text: String) throws -> DeviceName {
  do throws(AttachFault) {
    return try DeviceName(text)
  } catch {
    throw ControlError(text, "\(error)")
  }
}

/// Adds what a fault is about.
func about<Result>(
  _ subject: (some CustomStringConvertible)?, _ body: () throws(AttachFault) -> Result
) throws(ControlError) -> Result {
  do throws(AttachFault) {
    return try body()
  } catch {
    throw ControlError(subject.map { "\($0)" }, "\(error)")
  }
}

extension NBDURI {
  /// Sockets of vsock(7) are refused by newer kernels' drivers.
  fileprivate var isVsock: Bool {
    if case .vsock = endpoint { true } else { false }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What the user said about one export, before anything is opened or checked against the world.
// This file performs no I/O and holds no defaults: the command line has them.

import Bitmaps
import BlockTypes
import DataPlane

/// One export and the process that serves it, in the user's words.
public struct ExportConfig: Sendable {
  public var imagePath: String
  /// nil: the image's magic may say qcow2, and nothing else is guessed.
  public var format: ImageFormat?
  public var isReadOnly: Bool
  public var engine: ExportPlan.Engine

  /// nil: the last component of `imagePath`.
  public var exportName: String?
  public var description: String
  public var minimumBlockByteCount: UInt64
  public var metadataCacheByteCount: UInt64
  /// How long the server looks for the next request before it sleeps.
  public var pollMicroseconds: Int
  public var handshakeSecondsMax: Int
  public var connectionsMax: Int
  /// Let clients in without negotiation.
  public var speaksOldstyle = false

  /// Clients may make the disk larger.
  public var clientsMayResize = false
  /// The dirty bitmaps to begin with.
  public var bitmaps: [BitmapConfig] = []

  public var socketPath: String?
  public var socketMode: UInt32
  /// `USER[:GROUP]`.
  public var socketOwner: String?
  /// Where to listen for `strata status` and its like; nil for nowhere.
  public var controlPath: String?
  public var tcpEndpoint: TCPEndpoint?
  public var allowsTCPWithoutTLS: Bool
  public var tls = TLSConfig()

  /// `USER[:GROUP]` to become; nil leaves the choice to `WorkerIdentity`.
  public var user: String?
  public var readyDescriptor: Int32?
  public var pidFilePath: String?
  public var runsInBackground: Bool
  public var printsDrive: Bool

  public init(
    imagePath: String, format: ImageFormat?, isReadOnly: Bool, engine: ExportPlan.Engine,
    exportName: String?, description: String, minimumBlockByteCount: UInt64,
    metadataCacheByteCount: UInt64, pollMicroseconds: Int, handshakeSecondsMax: Int,
    connectionsMax: Int,
    socketPath: String?, socketMode: UInt32, socketOwner: String?, controlPath: String?,
    tcpEndpoint: TCPEndpoint?, allowsTCPWithoutTLS: Bool, user: String?, readyDescriptor: Int32?,
    pidFilePath: String?, runsInBackground: Bool, printsDrive: Bool
  ) {
    self.imagePath = imagePath
    self.format = format
    self.isReadOnly = isReadOnly
    self.engine = engine
    self.exportName = exportName
    self.description = description
    self.minimumBlockByteCount = minimumBlockByteCount
    self.metadataCacheByteCount = metadataCacheByteCount
    self.pollMicroseconds = pollMicroseconds
    self.handshakeSecondsMax = handshakeSecondsMax
    self.connectionsMax = connectionsMax
    self.socketPath = socketPath
    self.socketMode = socketMode
    self.socketOwner = socketOwner
    self.controlPath = controlPath
    self.tcpEndpoint = tcpEndpoint
    self.allowsTCPWithoutTLS = allowsTCPWithoutTLS
    self.user = user
    self.readyDescriptor = readyDescriptor
    self.pidFilePath = pidFilePath
    self.runsInBackground = runsInBackground
    self.printsDrive = printsDrive
  }
}

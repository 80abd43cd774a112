// SPDX-License-Identifier: Apache-2.0
//
// From what the user said and what was opened to the immutable plan that the data plane obeys.
// This file performs no I/O.

import Bitmaps
import BlockTypes
import DataPlane
import ImageTools
import NBDProtocol

/// Makes an `ExportPlan`, or says which option makes no sense.
public enum PlanCompiler {
  /// Bytes of names and descriptions (proto.md, "Values and strings").
  public static let textByteCountMax = 4_096
  public static let connectionsMaxRange = 1...10_000
  public static let handshakeSecondsRange = 1...3_600
  public static let patienceSecondsRange = 1...86_400
  public static let pollMicrosecondsRange = 0...1_000
  public static let metadataCacheByteCountRange: ClosedRange<UInt64> = 1 << 20...1 << 40
  /// Exports of one process: each has a thread of its own.
  public static let exportsMax = 256

  /// Checks what needs no image. Call it before anything is opened.
  public static func validate(_ config: ServerConfig) throws(ControlError) {
    guard !config.exports.isEmpty else {
      throw ControlError(nil, "no image to serve", wayOut: "name one, or say --export NAME=IMAGE")
    }
    guard config.exports.count <= exportsMax else {
      throw ControlError(
        "--export", "\(config.exports.count) exports are more than \(exportsMax)",
        wayOut: "start another process")
    }
    try config.tls.validate()
    var names: Set<[UInt8]> = []
    for export in config.exports {
      try validate(export, config)
      guard names.insert(Array(export.shownName.utf8)).inserted else {
        throw ControlError(
          "--export", "two exports have the name '\(export.shownName)'",
          wayOut: "say --export NAME=IMAGE")
      }
    }
    guard config.addresses.socketMode <= 0o777 else {
      throw ControlError("--socket-mode", "the mode has other bits than 0777")
    }
    try validateOldstyle(config)
    try validate(config.connectionsMax, in: connectionsMaxRange, option: "--max-connections")
    try validate(
      config.connectionsPerPeerMax, in: connectionsMaxRange, option: "--max-connections-per-peer")
    try validate(
      config.handshakeSecondsMax, in: handshakeSecondsRange, option: "--handshake-timeout")
  }

  private static func validateOldstyle(_ config: ServerConfig) throws(ControlError) {
    guard config.speaksOldstyle else { return }
    guard !config.printsDrive else {
      throw ControlError(
        "--print-drive", "without negotiation there is no export name, and QEMU refuses one",
        wayOut: "write file=nbd:unix:PATH")
    }
    guard config.tlsPolicy == .off else {
      throw ControlError(
        "--oldstyle", "a client that negotiates nothing cannot be asked for TLS",
        wayOut: "leave out --oldstyle, or say --tls off")
    }
    guard config.exports.count == 1 else {
      throw ControlError(
        "--oldstyle", "a client that negotiates nothing cannot choose among exports",
        wayOut: "leave out --oldstyle, or serve one export")
    }
  }

  private static func validate(
    _ export: ExportConfig, _ config: ServerConfig
  ) throws(ControlError) {
    try validate(text: export.shownName, option: "--export-name")
    try validate(text: export.description, option: "--description")
    let block = export.minimumBlockByteCount
    guard block == 1 || (512...65_536 ~= block && block.nonzeroBitCount == 1) else {
      throw ControlError("--block-size", "\(block) is neither 1 nor a power of two in 512...65536")
    }
    try export.access.validate(config.tls)
    try export.remote.validate()
    try validate(
      export.connectionsMax ?? 1, in: connectionsMaxRange, option: "--export-connections")
    try validate(export.pollMicroseconds, in: pollMicrosecondsRange, option: "--poll")
    try validate(
      export.patience.idleSecondsMax ?? 1, in: patienceSecondsRange, option: "--idle-timeout")
    try validate(
      export.patience.unreadSecondsMax ?? 1, in: patienceSecondsRange, option: "--unread-timeout")
    try validate(
      export.metadataCacheByteCount, in: metadataCacheByteCountRange, option: "--metadata-cache")
  }

  /// Compiles the plan. `config` must be valid.
  ///
  /// - Parameters:
  ///   - layers: the opened chain, active layer first.
  ///   - connectionsMax: clients of the whole server.
  public static func compile(
    _ config: ExportConfig, layers: [OpenedLayer], connectionsMax: Int
  ) throws(ControlError) -> ExportPlan {
    let diskByteCount = layers[0].exactDiskByteCount
    guard diskByteCount.isMultiple(of: config.minimumBlockByteCount) else {
      throw ControlError(
        config.imagePath,
        "its \(diskByteCount) bytes are not a multiple of the block size"
          + " \(config.minimumBlockByteCount)", wayOut: "choose a smaller --block-size")
    }
    var plan = ExportPlan(
      name: config.shownName, description: config.description,
      isReadOnly: config.isReadOnly, layers: layers.map(layerPlan), engine: config.engine,
      limits: RequestLimits(
        connectionsMax: min(config.connectionsMax ?? connectionsMax, connectionsMax)),
      minimumBlockByteCount: UInt32(config.minimumBlockByteCount),
      metadataCacheByteCount: Int(config.metadataCacheByteCount),
      spinNanosecondsMax: UInt64(config.pollMicroseconds) * 1_000)
    plan.patience = config.patience
    plan.clientsMayResize = config.clientsMayResize
    plan.overlapCheck = config.overlapCheck
    plan.packsWrites = try packsWrites(config, layers[0])
    plan.bitmapDurability = config.bitmapDurability
    plan.bitmapActions = try bitmapActions(config, diskByteCount: diskByteCount)
    return plan
  }

  /// Whether what clients write is compressed, which the format has for data of its own only.
  private static func packsWrites(
    _ config: ExportConfig, _ image: OpenedLayer
  ) throws(ControlError) -> Bool {
    guard config.packsWrites, !config.isReadOnly else { return false }
    let obstacle: String? =
      if image.header == nil {
        "a raw image has no compressed clusters"
      } else if image.header?.encryptionMethod != 0 {
        "an encrypted image has no compressed clusters"
      } else if image.dataStorage != nil {
        "an image with an external data file has no compressed clusters"
      } else {
        nil
      }
    guard let obstacle else { return true }
    throw ControlError(
      config.imagePath, "--compress: \(obstacle)", wayOut: "say compress=off for this export")
  }

  /// What makes the bitmaps that were asked for, tried once.
  private static func bitmapActions(
    _ config: ExportConfig, diskByteCount: UInt64
  ) throws(ControlError) -> [BitmapAction] {
    let actions = config.bitmaps.map(\.action)
    var bitmaps = BitmapSet(
      diskByteCount: diskByteCount, countMax: MetaContext.dirtyBitmapsMax)
    do throws(BitmapFault) {
      try bitmaps.perform(actions)
    } catch {
      throw ControlError("--bitmap", error.reason)
    }
    return actions
  }

  /// The plan for a chain that a verb works on, without clients.
  static func offlinePlan(
    _ layers: some Sequence<OpenedLayer>, isReadOnly: Bool = false
  ) -> ExportPlan {
    ExportPlan(
      name: "", description: "", isReadOnly: isReadOnly, layers: layers.map(layerPlan),
      engine: .sync, limits: RequestLimits(connectionsMax: 1), minimumBlockByteCount: 1,
      metadataCacheByteCount: 32 << 20, spinNanosecondsMax: 0)
  }

  static func layerPlan(_ layer: OpenedLayer) -> LayerPlan {
    LayerPlan(
      storage: layer.storage, dataStorage: layer.dataStorage,
      format: layer.header.map { .qcow2($0) } ?? .raw,
      diskByteCount: layer.exactDiskByteCount, cipher: layer.cipher)
  }

  private static func validate(text: String, option: String) throws(ControlError) {
    guard text.utf8.count <= textByteCountMax else {
      throw ControlError(
        option, "the text has \(text.utf8.count) bytes, and NBD allows \(textByteCountMax)")
    }
    guard !text.utf8.contains(0) else { throw ControlError(option, "the text has a zero byte") }
  }

  private static func validate<Value: Comparable>(
    _ value: Value, in range: ClosedRange<Value>, option: String
  ) throws(ControlError) {
    guard range.contains(value) else {
      throw ControlError(
        option, "\(value) is outside \(range.lowerBound)...\(range.upperBound)")
    }
  }
}

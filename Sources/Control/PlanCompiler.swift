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
  public static let pollMicrosecondsRange = 0...1_000
  public static let metadataCacheByteCountRange: ClosedRange<UInt64> = 1 << 20...1 << 40

  /// Checks what needs no image. Call it before anything is opened.
  public static func validate(_ config: ExportConfig) throws(ControlError) {
    try validate(text: exportName(of: config), option: "--export-name")
    try validate(text: config.description, option: "--description")
    let block = config.minimumBlockByteCount
    guard block == 1 || (512...65_536 ~= block && block.nonzeroBitCount == 1) else {
      throw ControlError("--block-size", "\(block) is neither 1 nor a power of two in 512...65536")
    }
    guard config.socketMode <= 0o777 else {
      throw ControlError("--socket-mode", "the mode has other bits than 0777")
    }
    guard !config.speaksOldstyle || !config.printsDrive else {
      throw ControlError(
        "--print-drive", "without negotiation there is no export name, and QEMU refuses one",
        wayOut: "write file=nbd:unix:PATH")
    }
    try config.tls.validate()
    guard !config.speaksOldstyle || config.tls.policy == .off else {
      throw ControlError(
        "--oldstyle", "a client that negotiates nothing cannot be asked for TLS",
        wayOut: "leave out --oldstyle, or say --tls off")
    }
    try validate(config.connectionsMax, in: connectionsMaxRange, option: "--max-connections")
    try validate(
      config.handshakeSecondsMax, in: handshakeSecondsRange, option: "--handshake-timeout")
    try validate(config.pollMicroseconds, in: pollMicrosecondsRange, option: "--poll")
    try validate(
      config.metadataCacheByteCount, in: metadataCacheByteCountRange, option: "--metadata-cache")
  }

  /// Compiles the plan. `config` must be valid.
  ///
  /// - Parameter layers: the opened chain, active layer first.
  public static func compile(
    _ config: ExportConfig, layers: [OpenedLayer]
  ) throws(ControlError) -> ExportPlan {
    let diskByteCount = layers[0].exactDiskByteCount
    guard diskByteCount.isMultiple(of: config.minimumBlockByteCount) else {
      throw ControlError(
        config.imagePath,
        "its \(diskByteCount) bytes are not a multiple of the block size"
          + " \(config.minimumBlockByteCount)", wayOut: "choose a smaller --block-size")
    }
    var plan = ExportPlan(
      name: exportName(of: config), description: config.description,
      isReadOnly: config.isReadOnly, layers: layers.map(layerPlan), engine: config.engine,
      limits: RequestLimits(
        connectionsMax: config.connectionsMax, handshakeSecondsMax: config.handshakeSecondsMax),
      minimumBlockByteCount: UInt32(config.minimumBlockByteCount),
      metadataCacheByteCount: Int(config.metadataCacheByteCount),
      spinNanosecondsMax: UInt64(config.pollMicroseconds) * 1_000)
    plan.speaksOldstyle = config.speaksOldstyle
    plan.clientsMayResize = config.clientsMayResize
    plan.bitmapActions = try bitmapActions(config, diskByteCount: diskByteCount)
    return plan
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

  /// The name that clients see: the file's own, unless the user gave one.
  static func exportName(of config: ExportConfig) -> String {
    config.exportName ?? config.imagePath.split(separator: "/").last.map(String.init) ?? ""
  }

  private static func layerPlan(_ layer: OpenedLayer) -> LayerPlan {
    LayerPlan(
      storage: layer.storage, format: layer.header.map { .qcow2($0) } ?? .raw,
      diskByteCount: layer.exactDiskByteCount)
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

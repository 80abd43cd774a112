// SPDX-License-Identifier: Apache-2.0
//
// The options of stratad that one export has for itself: on the command line for all of them, in
// --export and in a section of the configuration file for one. tools/man/stratad.8 says the same
// in prose.

import ArgumentParser
import BlockTypes
import Control
import DataPlane
import ImageTools

struct ExportOptions: ParsableArguments {
  enum Engine: String, ExpressibleByArgument, CaseIterable { case native, sync }
  enum Switch: String, ExpressibleByArgument, CaseIterable { case on, off }

  @Option(
    name: [.customShort("f"), .long],
    help: "The image's format: raw or qcow2. Without it only a qcow2 image is recognised.")
  var format: ImageFormat?

  @Flag(name: [.customShort("r"), .long], help: "Refuse writes, and open the image for reading.")
  var readOnly = false

  @Option(
    help: ArgumentHelp(
      "Serve the disk as it was at this internal snapshot, read-only.", valueName: "id-or-name"))
  var snapshot: String?

  @Option(
    help: ArgumentHelp(
      "How files are read and written: native (Linux AIO with O_DIRECT) or sync."
        + " (default: native)", valueName: "engine"))
  var aio: Engine?

  @Option(help: ArgumentHelp("A text about the export for clients.", valueName: "text"))
  var description: String?

  @Option(
    help: ArgumentHelp(
      "Smallest request: 1, or a power of 2 from 512. (default: 1)", valueName: "bytes"))
  var blockSize: String?

  @Option(
    help: ArgumentHelp(
      "Record what is written in a dirty bitmap; may be repeated.",
      valueName: "name[:granularity]"))
  var bitmap: [String] = []

  @Option(
    help: ArgumentHelp(
      "Let images name this file, or all in this folder, as their base, though it is not in their"
        + " own folder; may be repeated.", valueName: "path|any|none"))
  var allowBacking: [String] = []

  @Option(
    help: ArgumentHelp(
      "Let images name this data file, which is not in their folder; may be repeated.",
      valueName: "path"))
  var allowDataFile: [String] = []

  @Option(
    help: ArgumentHelp(
      "After a crash, bitmaps that the image keeps are wider by the rest of each region that was"
        + " written (region), or lost (none). (default: region)", valueName: "mode"))
  var bitmapDurability: BitmapDurability?

  @Option(
    help: ArgumentHelp(
      "File with the key of an encrypted image, or of the named one of its chain; may be repeated.",
      valueName: "[image=]path"))
  var keyFile: [String] = []

  @Option(
    help: ArgumentHelp(
      "Descriptor that the key can be read from; may be repeated.", valueName: "[image=]number"))
  var keyFd: [String] = []

  @Flag(help: "Let clients make the disk larger (NBD_CMD_RESIZE).")
  var clientResize = false

  @Option(
    help: ArgumentHelp(
      "Which tables of the image are guarded: none, constant, cached or all. (default: cached)",
      valueName: "mode"))
  var overlapCheck: OverlapCheck?

  @Option(
    help: ArgumentHelp(
      "Compress whole clusters that clients write: on or off. (default: off)", valueName: "switch"))
  var compress: Switch?

  @Option(
    help: ArgumentHelp("Memory for the image's tables. (default: 32M)", valueName: "bytes"))
  var metadataCache: String?

  @Option(
    help: ArgumentHelp(
      "Look for the next request this long before sleeping; 50 suits a machine that is not busy."
        + " (default: 0)", valueName: "microseconds"))
  var poll: Int?

  @Option(
    help: ArgumentHelp(
      "Clients of the export at once; further ones are refused. (default: --max-connections)",
      valueName: "count"))
  var exportConnections: Int?

  @Option(
    help: ArgumentHelp(
      "End clients that send nothing for so long. (default: never)", valueName: "seconds"))
  var idleTimeout: Int?

  @Option(
    help: ArgumentHelp(
      "End clients that take none of their replies for so long. (default: never)",
      valueName: "seconds"))
  var unreadTimeout: Int?

  @Option(
    help: ArgumentHelp(
      "Let only processes of this user in, by name or number; may be repeated.",
      valueName: "user"))
  var allowUid: [String] = []

  @Option(
    help: ArgumentHelp(
      "Let only processes of this group in, by name or number; may be repeated.",
      valueName: "group"))
  var allowGid: [String] = []

  @Option(
    help: ArgumentHelp(
      "Use of TLS: required, offered or off. (default: required with credentials, else off)",
      valueName: "mode"))
  var tls: TLSConfig.Mode?

  @Option(
    name: .customLong("tls-allow-dn"),
    help: ArgumentHelp(
      "Let only clients in with such a distinguished name (*, ?); may be repeated.",
      valueName: "pattern"))
  var tlsAllowDN: [String] = []

  @Option(
    name: .customLong("tls-allow-dn-file"),
    help: ArgumentHelp(
      "The same for the patterns in a file, one a line, which may change; may be repeated.",
      valueName: "path"))
  var tlsAllowDNFile: [String] = []

  @Option(
    name: .customLong("tls-allow-psk-identity"),
    help: ArgumentHelp(
      "Let only clients in with this identity; may be repeated.", valueName: "name"))
  var tlsAllowPSKIdentity: [String] = []

  @OptionGroup var remote: RemoteOptions

  /// What the user said about one export, in the words of Control.
  ///
  /// - Parameters:
  ///   - image: the path.
  ///   - common: what was said for all exports, and holds where nothing is said here. Format,
  ///     snapshot and description are never common: a wrong format destroys an image.
  func config(image: String, name: String?, common: ExportOptions?) throws -> ExportConfig {
    let engine = aio ?? common?.aio ?? .native
    var config = ExportConfig(
      imagePath: image, format: format,
      isReadOnly: readOnly || common?.readOnly == true || snapshot != nil,
      engine: engine == .native ? .aio : .sync, name: name,
      description: description ?? "",
      minimumBlockByteCount: try ExportOptions.byteCount(
        blockSize ?? common?.blockSize ?? "1", "--block-size"),
      metadataCacheByteCount: try ExportOptions.byteCount(
        metadataCache ?? common?.metadataCache ?? "32M", "--metadata-cache"),
      pollMicroseconds: poll ?? common?.poll ?? 0,
      connectionsMax: exportConnections ?? common?.exportConnections,
      patience: ClientPatience(
        idleSecondsMax: idleTimeout ?? common?.idleTimeout,
        unreadSecondsMax: unreadTimeout ?? common?.unreadTimeout),
      access: access(common))
    config.remote = remote.policy(common?.remote)
    config.allowed = AllowedFiles(
      backing: allowBacking.isEmpty ? common?.allowBacking ?? [] : allowBacking,
      data: allowDataFile.isEmpty ? common?.allowDataFile ?? [] : allowDataFile)
    config.snapshot = snapshot
    config.clientsMayResize = clientResize || common?.clientResize == true
    config.overlapCheck = overlapCheck ?? common?.overlapCheck ?? .cached
    config.packsWrites = (compress ?? common?.compress) == .on
    config.bitmapDurability = bitmapDurability ?? common?.bitmapDurability ?? .region
    config.keys = try keys()
    if config.keys.isEmpty, let common {
      config.keys = try common.keys()
      config.keysAreCommon = true
    }
    let bitmaps = bitmap.isEmpty ? common?.bitmap ?? [] : bitmap
    config.bitmaps = try bitmaps.map(ExportOptions.bitmapConfig)
    return config
  }

  private func keys() throws -> [KeySource] {
    do throws(ImageFault) {
      return try KeySource.list(files: keyFile, descriptors: keyFd)
    } catch {
      throw ValidationError(error.description)
    }
  }

  private static func bitmapConfig(_ text: String) throws -> BitmapConfig {
    guard let bitmap = BitmapConfig(parsing: text) else {
      throw ValidationError(
        "--bitmap: '\(text)' is not NAME[:GRANULARITY]; write backup or backup:64k")
    }
    return bitmap
  }

  /// A list that is given for one export stands in place of the common one.
  private func access(_ common: ExportOptions?) -> AccessConfig {
    func list(_ own: [String], _ other: [String]?) -> [String] { own.isEmpty ? other ?? [] : own }
    var access = AccessConfig()
    access.tls = tls ?? common?.tls
    access.allowedNames = list(tlsAllowDN, common?.tlsAllowDN)
    access.allowedNamesPaths = list(tlsAllowDNFile, common?.tlsAllowDNFile)
    access.allowedIdentities = list(tlsAllowPSKIdentity, common?.tlsAllowPSKIdentity)
    access.allowedUsers = list(allowUid, common?.allowUid)
    access.allowedGroups = list(allowGid, common?.allowGid)
    return access
  }

  private static func byteCount(_ text: String, _ option: String) throws -> UInt64 {
    guard let value = ByteCountText.parse(text) else {
      throw ValidationError("\(option): '\(text)' is no size; write 512, 64k or 32M")
    }
    return value
  }
}

extension ImageFormat: ExpressibleByArgument {}
extension OverlapCheck: ExpressibleByArgument {}
extension TLSConfig.Mode: ExpressibleByArgument {}
extension BitmapDurability: ExpressibleByArgument {}

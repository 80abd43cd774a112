// SPDX-License-Identifier: Apache-2.0
//
// What the user said about one export, before anything is opened or checked against the world.
// This file performs no I/O and holds no defaults: the command line has them.

import BlockTypes
import DataPlane
import ImageTools
import NBDProtocol

/// One export, in the user's words.
public struct ExportConfig: Sendable {
  public var imagePath: String
  /// nil: the image's magic may say qcow2, and nothing else is guessed.
  public var format: ImageFormat?
  public var isReadOnly: Bool
  public var engine: ExportPlan.Engine

  /// nil: the last component of `imagePath`.
  public var name: String?
  public var description: String
  public var minimumBlockByteCount: UInt64
  public var metadataCacheByteCount: UInt64
  /// How long the server looks for the next request before it sleeps.
  public var pollMicroseconds: Int
  /// Clients of this export at once; nil: as many as the server takes.
  public var connectionsMax: Int?
  public var patience: ClientPatience
  public var access: AccessConfig
  /// Which servers the image's backing files may be kept by.
  public var remote = RemotePolicy()
  /// What images may name besides the files in their own folders.
  public var allowed = AllowedFiles()
  /// Clients may make the disk larger.
  public var clientsMayResize = false
  /// Which of the image's own tables are guarded against being overwritten.
  public var overlapCheck = OverlapCheck.cached
  /// Whole clusters that clients write are compressed.
  public var packsWrites = false
  /// Id or name of an internal snapshot that is served in the place of the disk, read-only.
  public var snapshot: String?
  /// Where the keys of encrypted images are.
  public var keys: [KeySource] = []
  /// They were said for all exports, of which some may need none.
  public var keysAreCommon = false
  /// What becomes of bitmaps that the image keeps when the process ends without notice.
  public var bitmapDurability = BitmapDurability.region
  /// The dirty bitmaps to begin with, beside those of the image.
  public var bitmaps: [BitmapConfig] = []

  public init(
    imagePath: String, format: ImageFormat?, isReadOnly: Bool, engine: ExportPlan.Engine,
    name: String?, description: String, minimumBlockByteCount: UInt64,
    metadataCacheByteCount: UInt64, pollMicroseconds: Int, connectionsMax: Int?,
    patience: ClientPatience, access: AccessConfig
  ) {
    self.imagePath = imagePath
    self.format = format
    self.isReadOnly = isReadOnly
    self.engine = engine
    self.name = name
    self.description = description
    self.minimumBlockByteCount = minimumBlockByteCount
    self.metadataCacheByteCount = metadataCacheByteCount
    self.pollMicroseconds = pollMicroseconds
    self.connectionsMax = connectionsMax
    self.patience = patience
    self.access = access
  }

  /// The name that clients see: the file's own, or that of the export which is the image, unless
  /// the user gave one.
  public var shownName: String {
    if let name { return name }
    if NBDURI.looksLike(imagePath) {
      // What is wrong with a URI is told when it is opened.
      do throws(NBDURIFault) { return try NBDURI(imagePath).exportName } catch { return "" }
    }
    return imagePath.split(separator: "/").last.map(String.init) ?? ""
  }
}

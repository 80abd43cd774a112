// SPDX-License-Identifier: Apache-2.0
//
// What an export consists of: an immutable value that Control compiles and the loop obeys.
// This file performs no I/O.

import Bitmaps
import BlockTypes
import LinuxIO
import Qcow2

/// One image of the backing chain, opened, locked and with its header checked.
public struct LayerPlan {
  public enum Format {
    /// Guest offset and file offset are the same; reads past the end are zeroes.
    case raw
    case qcow2(Header)
  }

  public let storage: LayerFile
  /// The external data file of a qcow2 image that has one.
  public let dataStorage: LayerFile?
  public let format: Format
  /// Bytes of the disk that this layer describes; may differ from the export's size.
  public let diskByteCount: UInt64
  /// What encrypts the guest's data in this layer; nil: nothing does.
  public let cipher: (any SectorCipher)?

  public init(
    storage: LayerFile, dataStorage: LayerFile? = nil, format: Format, diskByteCount: UInt64,
    cipher: (any SectorCipher)? = nil
  ) {
    self.storage = storage
    self.dataStorage = dataStorage
    self.format = format
    self.diskByteCount = diskByteCount
    self.cipher = cipher
  }
}

/// How long a client may do nothing before its connection ends. nil: for ever, as a guest may.
public struct ClientPatience: Sendable, Hashable {
  /// Seconds without a request, with none in flight.
  public var idleSecondsMax: Int?
  /// Seconds in which it takes nothing of the replies that wait for it.
  public var unreadSecondsMax: Int?

  public init(idleSecondsMax: Int? = nil, unreadSecondsMax: Int? = nil) {
    self.idleSecondsMax = idleSecondsMax
    self.unreadSecondsMax = unreadSecondsMax
  }
}

/// Everything that the data plane needs to know about one export. There are no defaults here:
/// Control decides.
public struct ExportPlan {
  /// How reads and writes reach the files.
  public enum Engine: Sendable {
    /// Linux AIO, with O_DIRECT where the files allow it.
    case aio
    /// One blocking call for each request, through the page cache.
    case sync
  }

  public var name: String
  public var description: String
  public var isReadOnly: Bool
  /// The backing chain; index 0 is the active layer.
  public var layers: [LayerPlan]
  public var engine: Engine
  public var limits: RequestLimits
  /// Smallest request that clients may send, in bytes: 1 or a power of two up to 65,536.
  public var minimumBlockByteCount: UInt32
  /// Bytes of tables (L2 and refcount) that may stay in memory.
  public var metadataCacheByteCount: Int
  /// How long the loop may look for the next event before it sleeps; 0 sleeps at once.
  public var spinNanosecondsMax: UInt64
  /// How long a client may do nothing.
  public var patience = ClientPatience()
  /// Clients may make the disk larger.
  public var clientsMayResize = false
  /// Which of the image's own tables are guarded against being overwritten.
  public var overlapCheck = OverlapCheck.cached
  /// Whole clusters that are written to the active layer are compressed. It must be a qcow2 image
  /// that keeps its data itself and does not encrypt it.
  public var packsWrites = false
  /// What becomes of bitmaps that the image keeps when the process ends without notice.
  public var bitmapDurability = BitmapDurability.region
  /// What makes the dirty bitmaps that the export begins with, beside those of the image.
  public var bitmapActions: [BitmapAction] = []

  public init(
    name: String, description: String, isReadOnly: Bool, layers: [LayerPlan], engine: Engine,
    limits: RequestLimits, minimumBlockByteCount: UInt32, metadataCacheByteCount: Int,
    spinNanosecondsMax: UInt64
  ) {
    precondition(!layers.isEmpty, "an export has at least one layer")
    self.name = name
    self.description = description
    self.isReadOnly = isReadOnly
    self.layers = layers
    self.engine = engine
    self.limits = limits
    self.minimumBlockByteCount = minimumBlockByteCount
    self.metadataCacheByteCount = metadataCacheByteCount
    self.spinNanosecondsMax = spinNanosecondsMax
  }

  /// Bytes of the virtual disk: those of the active layer.
  public var diskByteCount: UInt64 { layers[0].diskByteCount }
}

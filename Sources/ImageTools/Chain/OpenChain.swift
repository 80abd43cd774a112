// SPDX-License-Identifier: Apache-2.0
//
// Opens an image and everything below it, encrypted ones with their keys. Formats are said by the
// user or recorded in the overlay, backing names are names of files, and loops end. Opens and locks
// files, and rebuilds the reference counts of a dirty image that is opened for writing.

import BlockTypes
import Compression
import LinuxIO
import Qcow2

/// Opens backing chains.
public enum OpenChain {
  /// Layers that a chain has at most.
  public static let depthMax = 1024

  /// How an image's format is found where nobody says it.
  public enum Detection: Sendable {
    /// The format must be given or recorded.
    case none
    /// A qcow2 magic is believed for the top image; anything else must be said. For serving.
    case topQcow2
    /// For the top image a magic decides between qcow2 and raw. Only for reading.
    case top
    /// As `top`, also for backing files without a recorded format. Only for `info`.
    case all
  }

  /// A layer below the top image that is written, too.
  public enum WrittenBase: Sendable {
    /// The top image's own backing file.
    case next
    case file(LayerStorage.Identity)
  }

  public struct Options: Sendable {
    public var detection: Detection
    /// Off only for a look at an image that somebody else uses.
    public var takesLocks: Bool
    /// Off for verbs that look at one image alone.
    public var followsBackingFiles: Bool
    /// Off for verbs that only describe an image: features that we lack are no error then.
    public var requiresSupport: Bool
    /// Off for `check`, which looks at a dirty image as it is.
    public var rebuildsDirty: Bool
    /// On for who keeps up the persistent bitmaps of an image that it writes.
    public var keepsBitmaps = false
    /// Off for verbs that change tables but no byte of the disk: what autoclear bits that we know
    /// say of the disk stays true.
    public var changesDisk: Bool
    /// Id or name of the top image's internal snapshot that is to be read in the place of its disk.
    public var snapshot: String?
    /// Which layer below the top image is opened for writing; nil: none.
    public var writtenBase: WrittenBase?
    /// Opens images that are no files; nil: there are none.
    public var remote: (any RemoteOpener)?
    /// What images may name besides the files in their own folders.
    public var allowed = AllowedFiles()
    /// The keys of encrypted images; nil: there are none.
    public var keys: KeyRing?
    /// Off for verbs that look at no data of the guest: these need no keys.
    public var needsKeys = true

    public init(
      detection: Detection = .topQcow2, takesLocks: Bool = true, followsBackingFiles: Bool = true,
      requiresSupport: Bool = true, rebuildsDirty: Bool = true, changesDisk: Bool = true,
      snapshot: String? = nil, remote: (any RemoteOpener)? = nil
    ) {
      self.remote = remote
      self.detection = detection
      self.takesLocks = takesLocks
      self.followsBackingFiles = followsBackingFiles
      self.requiresSupport = requiresSupport
      self.rebuildsDirty = rebuildsDirty
      self.changesDisk = changesDisk
      self.snapshot = snapshot
    }
  }

  /// Opens the image at `path` and its backing files, top first.
  ///
  /// The backing files are opened read-only, but for `options.writtenBase`. A dirty image that is
  /// opened for writing has its reference counts rebuilt, so its header comes back clean.
  ///
  /// - Parameters:
  ///   - format: what the user says; nil leaves it to `options.detection`.
  ///   - access: for the top image.
  public static func open(
    path: String, format: ImageFormat?, access: ImageFile.Access, options: Options = Options()
  ) throws(ImageFault) -> [OpenedLayer] {
    let gate = try FileGate.backing(options.allowed)
    var layers: [OpenedLayer] = []
    var identities: Set<LayerStorage.Identity> = []
    var next: LayerSource? = LayerSource(path: path, format: format, remote: options.remote)
    while let source = next {
      guard layers.count < depthMax else {
        throw ImageFault(
          path, "the backing chain has more than \(depthMax) layers",
          wayOut: "merge some of them (qemu-img commit or rebase)", kind: .refused)
      }
      var access = layers.isEmpty ? access : .readOnly
      if case .next = options.writtenBase, layers.count == 1 { access = .readWrite }
      var storage = try source.open(access: access, gate: gate)
      let identity = try storage.identity()
      if case .file(identity) = options.writtenBase, !layers.isEmpty {
        access = .readWrite
        storage = try source.open(access: access, gate: gate)
        guard try storage.identity() == identity else {
          throw ImageFault(
            source.path, "another file took its place while it was opened", kind: .refused)
        }
      }
      guard identities.insert(identity).inserted else {
        throw ImageFault(
          source.overlay ?? path, "the backing chain loops: it comes back to \(source.path)",
          wayOut: "point the overlay to its real base (qemu-img rebase -u)", kind: .corrupt)
      }
      var ownOptions = options
      if !layers.isEmpty { ownOptions.changesDisk = true }
      let layer = try describe(storage, source, access: access, options: ownOptions)
      if let data = layer.dataStorage, !identities.insert(try data.identity()).inserted {
        throw ImageFault(
          layer.path, "its data file \(data.path) is an image of the same chain", kind: .corrupt)
      }
      layers.append(layer)
      next =
        options.followsBackingFiles
        ? try LayerSource(below: layer, top: layers[0].storage, options: options) : nil
    }
    return layers
  }

  private static func describe(
    _ storage: LayerFile, _ source: LayerSource, access: ImageFile.Access, options: Options
  ) throws(ImageFault) -> OpenedLayer {
    if options.takesLocks {
      do throws(ImageError) {
        switch access {
        case .readOnly: try storage.file.lockForReading()
        case .readWrite: try storage.file.lockForWriting()
        }
      } catch {
        throw ImageFault(storage.path, error)
      }
    }
    let format: ImageFormat
    if let known = source.format {
      format = known
    } else {
      format = try detectFormat(of: storage, source, options.detection)
    }
    let snapshot = source.overlay == nil ? options.snapshot : nil
    switch format {
    case .raw:
      if snapshot != nil { throw SnapshotEditor.noneInRaw(storage.path) }
      return try OpenedLayer(raw: storage)
    case .qcow2:
      var header = try OpenedLayer.readHeader(of: storage)
      do throws(ImageError) {
        if options.requiresSupport {
          try header.requireSupported(
            forWriting: access == .readWrite, needsNoKey: options.keys != nil || !options.needsKeys)
          if access == .readWrite, !options.keepsBitmaps { try header.requireNoBitmaps() }
          try ClusterCodec(rawValue: header.compressionType)?.load()
        } else if access == .readWrite {
          try header.requireKnownFeatures()
        }
      } catch {
        throw ImageFault(storage.path, error)
      }
      let cipher = try cipher(of: storage, header, options)
      let dataStorage = try DataFile.open(of: storage, header, access: access, options: options)
      if access == .readWrite && header.isDirty && options.rebuildsDirty {
        do throws(ImageError) {
          try header.requireKnownFeatures()
        } catch {
          throw ImageFault(storage.path, error)
        }
        header = try RebuildRefcounts.run(on: storage, header: header)
      }
      // qcow2.rst, "autoclear_features": what we do not keep up is cleared before the first write.
      // Valid bitmaps were refused above by who changes the disk and does not keep them up; raw
      // external data is kept up.
      var ours: AutoclearFeatures = .rawExternalData
      if header.hasPersistentBitmaps { ours.formUnion([.bitmaps, .completeBitmaps]) }
      let kept = header.autoclearFeatures.intersection(options.changesDisk ? ours : .known)
      if access == .readWrite && header.autoclearFeatures != kept {
        header.autoclearFeatures = kept
        try storage.rewriteHeader(to: header)
      }
      if let snapshot {
        precondition(access == .readOnly, "a snapshot is opened for writing")
        header = try SnapshotEditor.view(of: header, storage, at: snapshot)
      }
      return OpenedLayer(
        qcow2: storage, dataStorage: dataStorage, header: header, cipher: cipher)
    }
  }

  /// What decrypts the guest's data, before anything of the image is changed.
  private static func cipher(
    of storage: LayerFile, _ header: Header, _ options: Options
  ) throws(ImageFault) -> (any SectorCipher)? {
    guard options.needsKeys, let keys = options.keys,
      header.encryptionMethod == Header.encryptionLUKS
    else { return nil }
    let volume = try keys.open(storage, header)
    do throws(ImageError) { return try volume.cipher() } catch {
      throw ImageFault(storage.path, error)
    }
  }

  private static func detectFormat(
    of storage: LayerFile, _ source: LayerSource, _ detection: Detection
  ) throws(ImageFault) -> ImageFormat {
    let isTop = source.overlay == nil
    let isQcow2 = try OpenedLayer.hasQcow2Magic(storage)
    switch detection {
    case .all: return isQcow2 ? .qcow2 : .raw
    case .top where isTop: return isQcow2 ? .qcow2 : .raw
    case .topQcow2 where isTop && isQcow2: return .qcow2
    case .none, .top, .topQcow2:
      throw ImageFault(
        storage.path, "the image's format is not said and is not guessed",
        wayOut: "say it (-f raw or -f qcow2)", kind: .refused)
    }
  }
}

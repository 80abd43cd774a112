// SPDX-License-Identifier: Apache-2.0
//
// The disk that is converted: a backing chain of ours, or an image of another program. Tells run by
// run where the bytes are; whoever reads them does so by the run. Opens, locks and reads files.

import BlockTypes
import ForeignImages
import LinuxIO

/// A source of bytes, from the start of its disk to the end.
struct SourceDisk {
  /// One of the two; each is used where it lies, so that its tables are not copied.
  private var chain: ChainReader?
  private var foreign: ForeignLayer?
  let byteCount: UInt64
  let formatName: String

  /// Opens the image at `path`.
  ///
  /// - Parameters:
  ///   - said: its format; nil leaves it to the file's first bytes, and then the image may name no
  ///     other file: whoever made it would choose which of our files are read.
  ///   - snapshot: id or name of the snapshot that is read in the place of the disk.
  init(
    path: String, said: SourceFormat?, snapshot: String? = nil, _ options: ConvertOptions,
    remote: (any RemoteOpener)?
  ) throws(ImageFault) {
    if let foreign = try SourceFormat.foreign(said: said, path: path, remote: remote) {
      if snapshot != nil { throw SnapshotEditor.noneInForeign(path) }
      let layer = try ForeignLayer(
        path: path, format: foreign, takesLocks: options.takesLocks, opensOthers: said != nil,
        allowed: options.allowed)
      self.foreign = layer
      byteCount = layer.diskByteCount
      formatName = foreign.rawValue
      return
    }
    var open = OpenChain.Options(
      detection: .top, takesLocks: options.takesLocks, followsBackingFiles: said != nil,
      snapshot: snapshot, remote: remote)
    open.allowed = options.allowed
    open.keys = options.keys
    // A data file is a file that the image names, too.
    if said == nil { open.allowed.data = [] }
    let layers = try OpenChain.open(
      path: path, format: said?.own, access: .readOnly, options: open)
    let namesOthers = layers[0].header?.backingFile != nil || layers[0].dataStorage != nil
    guard said != nil || !namesOthers else {
      throw ImageFault(
        path, "the image names another file, and its format is not said",
        wayOut: "say it (-f \(layers[0].format.rawValue)) if you trust the image", kind: .refused)
    }
    chain = try ChainReader(layers)
    byteCount = layers[0].diskByteCount
    formatName = layers[0].format.rawValue
  }

  /// The layers of a chain of ours; empty for another program's image.
  var layers: [OpenedLayer] { chain?.layers ?? [] }

  /// The run at `offset`, which lies on the disk.
  ///
  /// - Parameter byteCountMax: at least 1.
  mutating func run(
    at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> SourceRun {
    let limit = min(byteCountMax, byteCount - offset)
    if let run = try chain?.run(at: offset, byteCountMax: limit) { return run }
    guard let run = try foreign?.run(at: offset, byteCountMax: limit) else {
      preconditionFailure("a source is neither a chain nor a foreign image")
    }
    return run
  }

  /// Who the files are that must not be written to.
  func identities() throws(ImageFault) -> [LayerStorage.Identity] {
    let files =
      layers.map(\.storage) + layers.compactMap(\.dataStorage)
      + (foreign?.files.map(\.storage) ?? [])
    var identities: [LayerStorage.Identity] = []
    for file in files { identities.append(try file.identity()) }
    return identities
  }
}

extension ForeignLayer {
  fileprivate mutating func run(
    at offset: UInt64, byteCountMax: UInt64
  ) throws(ImageFault) -> SourceRun {
    let (found, isHole) = try extent(at: offset, byteCountMax: byteCountMax)
    if isHole { return SourceRun(byteCount: found.byteCount, content: .zero) }
    switch found.content {
    case .absent, .zero: return SourceRun(byteCount: found.byteCount, content: .zero)
    case .data(let file, let place, _):
      return SourceRun(
        byteCount: found.byteCount,
        content: .stored(files[file].storage, place, endsInZeroes: false))
    case .packed(let packed):
      let unit = SourceUnit(
        file: files[packed.file].storage, stored: packed.stored,
        wrapping: packed.wrapping == .zlib ? .zlib : .cluster(.deflate), unit: packed.unit)
      return SourceRun(byteCount: found.byteCount, content: .packed(unit))
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Writes what an overlay says into its base, as qemu-img commit does, by the code that serves
// clients. The overlay says all of it until the base is durable, so a cut at any moment leaves the
// overlay's disk as it was. Opens, locks, reads and writes images.

import BlockTypes
import DataPlane
import ImageTools
import LinuxIO

/// Commits overlays to their bases.
public struct Commit {
  public struct Options {
    /// Of the overlay; nil: its magic says qcow2.
    public var format: ImageFormat?
    /// Another layer of the chain than the overlay's own base. The overlay is not emptied then.
    public var base: String?
    /// Leave the overlay as it is.
    public var keepsOverlay = false
    public var allowed = AllowedFiles()
    /// The keys of encrypted images.
    public var keys: KeyRing?
    /// Called with the bytes of the disk that are done, and all.
    public var progress: (_ done: UInt64, _ all: UInt64) -> Void = { _, _ in }

    public init() {}
  }

  /// What was done.
  public struct Report: Hashable, Sendable {
    public let basePath: String
    /// Bytes that were written to the base, without those that became zeroes.
    public let writtenByteCount: UInt64
    public let isEmptied: Bool
  }

  private let layers: [OpenedLayer]
  private let baseIndex: Int
  private let options: Options

  /// Commits the image at `path`.
  public static func run(
    path: String, options: Options, remote: (any RemoteOpener)?
  ) throws(ControlError) -> Report {
    let commit: Commit
    do throws(ImageFault) {
      commit = try Commit(path: path, options: options, remote: remote)
    } catch {
      throw ControlError(error)
    }
    return try commit.run()
  }

  private var isEmptied: Bool { !options.keepsOverlay && options.base == nil }

  private init(
    path: String, options: Options, remote: (any RemoteOpener)?
  ) throws(ImageFault) {
    var open = OpenChain.Options(detection: .topQcow2, changesDisk: false, remote: remote)
    open.allowed = options.allowed
    open.keys = options.keys
    open.keepsBitmaps = true
    open.writtenBase = .next
    if let base = options.base { open.writtenBase = .file(try Self.identity(of: base)) }
    let empties = !options.keepsOverlay && options.base == nil
    layers = try OpenChain.open(
      path: path, format: options.format, access: empties ? .readWrite : .readOnly, options: open)
    self.options = options
    guard layers.count > 1 else {
      throw ImageFault(path, "it has no backing file to commit to", kind: .refused)
    }
    baseIndex = try Self.baseIndex(in: layers, open.writtenBase, options.base)
    if empties { try EmptyOverlay.requirePossible(layers[0]) }
    try Self.requireNoSnapshots(layers[..<baseIndex])
    for layer in layers[...baseIndex] where layer.storage.file.remote != nil {
      throw ImageFault(
        layer.path, "an image that another server keeps is not committed here",
        wayOut: "commit it where it is kept", kind: .unsupported)
    }
    try options.keys?.requireUse(in: layers, mayBeIdle: false)
  }

  private static func identity(of path: String) throws(ImageFault) -> LayerStorage.Identity {
    do throws(SystemError) {
      return .local(try ImageFile(opening: path, access: .readOnly).identity())
    } catch {
      throw ImageFault(path, error)
    }
  }

  private static func baseIndex(
    in layers: [OpenedLayer], _ written: OpenChain.WrittenBase?, _ name: String?
  ) throws(ImageFault) -> Int {
    guard case .file(let identity) = written else { return 1 }
    for (index, layer) in layers.enumerated().dropFirst() {
      do throws(SystemError) {
        if try layer.storage.file.identity() == identity { return index }
      } catch {
        throw ImageFault(layer.path, error)
      }
    }
    throw ImageFault(
      layers[0].path, "'\(name ?? "")' is not below it",
      wayOut: "list what is (strata info --backing-chain)", kind: .refused)
  }

  /// A snapshot shows the base where it says nothing itself, so it would change with the base.
  private static func requireNoSnapshots(
    _ overlays: ArraySlice<OpenedLayer>
  ) throws(ImageFault) {
    for layer in overlays where layer.header.map({ $0.snapshotCount > 0 }) == true {
      throw ImageFault(
        layer.path, "it has internal snapshots, which show the base and would change with it",
        wayOut: "delete them first (strata snapshot delete)", kind: .refused)
    }
  }

  private func run() throws(ControlError) -> Report {
    let byteCount = try writeBase()
    if isEmptied {
      do throws(ImageFault) {
        try EmptyOverlay.run(layers[0])
      } catch {
        throw ControlError(error)
      }
    }
    options.progress(layers[0].diskByteCount, layers[0].diskByteCount)
    return Report(
      basePath: layers[baseIndex].path, writtenByteCount: byteCount, isEmptied: isEmptied)
  }

  /// Writes the changes and makes them durable. Returns how many bytes were written.
  private func writeBase() throws(ControlError) -> UInt64 {
    var base = try openBase()
    let written: Result<UInt64, ControlError>
    do throws(ControlError) {
      written = .success(try write(to: &base))
    } catch {
      written = .failure(error)
    }
    // Also after a failure: what the base holds by then is to be a whole image.
    let trouble = base.finish()
    base.close()
    let byteCount = try written.get()
    if let trouble {
      throw ControlError(
        layers[baseIndex].path, trouble, wayOut: "the overlay is as it was: try again")
    }
    return byteCount
  }

  private func openBase() throws(ControlError) -> OfflineImage {
    do {
      return try OfflineImage(PlanCompiler.offlinePlan(layers[baseIndex...]))
    } catch {
      throw ControlError(layers[baseIndex].path, "\(error)")
    }
  }

  private func write(to base: inout OfflineImage) throws(ControlError) -> UInt64 {
    let path = layers[baseIndex].path
    let all = layers[0].diskByteCount
    if base.diskByteCount < all, let reason = base.grow(to: all) {
      throw ControlError(path, "it cannot grow to \(all) bytes, the size of the overlay: \(reason)")
    }
    var writtenByteCount: UInt64 = 0
    var buffer = [UInt8](repeating: 0, count: OverlayChanges.dataByteCountMax)
    do throws(ImageFault) {
      var changes = try OverlayChanges(layers, above: baseIndex)
      while let change = try changes.next() {
        let error: BlockErrno
        switch change.kind {
        case .zeroes: error = base.writeZeroes(change.range)
        case .data:
          try changes.load(change, into: &buffer)
          error = base.write(buffer, 0..<Int(change.range.byteCount), at: change.range.start)
          writtenByteCount += change.range.byteCount
        }
        guard error == .none else {
          throw ImageFault(
            path, "byte \(change.range.start) of the disk cannot be written: \(error.inWords)",
            wayOut: "the overlay is as it was: try again")
        }
        options.progress(change.range.end, all)
      }
    } catch {
      throw ControlError(error)
    }
    return writtenByteCount
  }
}

extension BlockErrno {
  fileprivate var inWords: String {
    switch self {
    case .none: "no error"
    case .io: "the disk failed, or the image is damaged there"
    case .noSpace: "no room is left where it lives"
    case .readOnly: "it cannot be written"
    case .noMemory: "there is no memory"
    case .invalid, .notSupported, .overflow, .shutdown: "\(self)"
    }
  }
}

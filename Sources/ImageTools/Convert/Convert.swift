// SPDX-License-Identifier: Apache-2.0
//
// Makes an image of another format, or of another shape, from an image. The new image is written
// under a name of its own and gets its name when all of it is durable: whatever ends a conversion
// before, no file looks like a whole one (the class of CVE-2022-0485).

import BlockTypes
import LinuxIO
import Qcow2

/// Converts images.
public enum Convert {
  /// What a conversion has done.
  public struct Report: Hashable, Sendable {
    /// The format of the source, as it was said or found.
    public let sourceFormat: String
    public let diskByteCount: UInt64
    /// Bytes that the new file occupies.
    public let allocatedByteCount: UInt64?
  }

  /// What a target is called until it is whole.
  public static let partialSuffix = ".partial"

  /// Converts the image at `source` to a new one at `target`.
  ///
  /// A regular file that has the target's name is replaced in the end, if nobody uses it. Nothing
  /// is left when the conversion fails.
  ///
  /// - Parameter progress: called from several threads with the bytes of the disk that are behind
  ///   the last written piece, and with all bytes.
  public static func run(
    source: String, target: String, options: ConvertOptions, remote: (any RemoteOpener)? = nil,
    progress: @escaping @Sendable (_ done: UInt64, _ all: UInt64) -> Void = { _, _ in }
  ) throws(ImageFault) -> Report {
    try options.requireConsistent(path: target)
    if remote?.recognises(target) == true {
      throw ImageFault(
        target, "the target of a conversion is a file", wayOut: "use strata nbd copy",
        kind: .refused)
    }
    let disk = try SourceDisk(
      path: source, said: options.sourceFormat, snapshot: options.snapshot, options,
      remote: remote)
    let base = try openBase(of: target, options, remote)
    try options.keys?.requireUse(in: disk.layers + (base?.layers ?? []), mayBeIdle: false)
    let replaced = try ReplacedFile(target)
    try replaced?.requireUnused(by: disk.identities() + (base?.identities() ?? []))
    var content = try ConvertContent(
      path: target, diskByteCount: disk.byteCount, hasBase: base != nil, options: options)
    let partial = target + partialSuffix
    let unfinished = options.unfinished ?? UnfinishedFile()
    let file = try unfinished.make(partial) { () throws(ImageFault) in try create(partial) }
    defer { unfinished.end() }
    let all = disk.byteCount
    do throws(ImageFault) {
      if options.targetFormat == .raw { try file.truncate(to: all) }
      let plan = ConvertPlan(
        disk, over: base, gridByteCount: content.gridByteCount,
        skipsZeroes: content.cutter.isSparse)
      let work = try ConvertWork(
        plan, to: content.target, file: file, cutter: content.cutter,
        threadCount: options.threadCount, progress: { progress($0, all) })
      content.target = try work.run()
      try content.finish(file)
      try rename(partial, to: target)
    } catch {
      throw removing(partial, after: error)
    }
    progress(all, all)
    return Report(
      sourceFormat: disk.formatName, diskByteCount: all,
      allocatedByteCount: try file.allocatedByteCount())
  }

  private static func openBase(
    of target: String, _ options: ConvertOptions, _ remote: (any RemoteOpener)?
  ) throws(ImageFault) -> SourceDisk? {
    guard let name = options.create.backingFile else { return nil }
    let isRemote = remote?.recognises(name) == true
    if !isRemote, let scheme = BackingName(name).scheme {
      throw ImageFault(
        target,
        "the backing file '\(name)' names the protocol '\(scheme)', but only files and "
          + "NBD URIs are supported", wayOut: "write ./\(name) if it is a file", kind: .unsupported)
    }
    return try SourceDisk(
      path: isRemote ? name : BackingName(name).path(relativeTo: target),
      said: options.create.backingFormat.map { .own($0) }, options, remote: remote)
  }

  private static func create(_ partial: String) throws(ImageFault) -> LayerFile {
    do throws(SystemError) {
      return LayerFile(try ImageFile(creating: partial), path: partial)
    } catch {
      throw ImageFault(
        partial, error.description,
        wayOut: error.isAlreadyThere
          ? "another conversion is running, or one was killed: then remove the file"
          : ImageFault.wayOut(of: error.errno))
    }
  }

  private static func rename(_ partial: String, to target: String) throws(ImageFault) {
    do throws(SystemError) {
      try FolderEntry.rename(partial, to: target)
      try FolderEntry.synchronizeFolder(of: target)
    } catch {
      throw ImageFault(target, error)
    }
  }

  /// The fault to report when the unfinished file is gone, or stays although it should not.
  private static func removing(_ partial: String, after fault: ImageFault) -> ImageFault {
    do throws(SystemError) {
      try FolderEntry.remove(partial)
      return fault
    } catch {
      return ImageFault(
        fault.path, "\(fault.cause), and the unfinished file \(partial) stays (\(error))",
        wayOut: fault.wayOut, kind: fault.kind)
    }
  }
}

/// The file that a new image takes the place of.
private struct ReplacedFile {
  private let storage: LayerFile

  /// nil when nothing has the name. Locks the file: who uses it would be left with an image that
  /// has no name any more.
  init?(_ path: String) throws(ImageFault) {
    do throws(SystemError) {
      storage = LayerFile(try ImageFile(opening: path, access: .readWrite), path: path)
    } catch {
      if error.isMissing { return nil }
      throw ImageFault(path, error)
    }
    guard try storage.isRegularFile() else {
      throw ImageFault(
        path, "the target of a conversion is a regular file", wayOut: "choose another name",
        kind: .refused)
    }
  }

  func requireUnused(by others: [LayerStorage.Identity]) throws(ImageFault) {
    guard !others.contains(try storage.identity()) else {
      throw ImageFault(
        storage.path, "an image cannot be converted to itself or to its own base",
        wayOut: "choose another name", kind: .refused)
    }
    do throws(ImageError) {
      try storage.file.lockForWriting()
    } catch {
      throw ImageFault(storage.path, error)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Makes a new image: raw, or an empty qcow2 with or without a backing file. Writes the tables
// first and the header last, so that a crash leaves no half image that looks like a whole one.

import BlockTypes
import Encryption
import LinuxIO
import Qcow2

/// Creates images.
public enum Create {
  /// Creates the image at `path` and returns the line that says what was made.
  ///
  /// Nothing is touched before everything that can be checked has been checked. A file that was
  /// there is overwritten, after its lock was taken; a new file is removed when its creation fails.
  ///
  /// - Parameters:
  ///   - key: opens the image if it is to be encrypted.
  ///   - allowed: what the images below may name besides the files in their own folders.
  ///   - remote: opens what is no file; nil: there is no such thing.
  public static func run(
    path: String, format: ImageFormat, options: CreateOptions, key: SecretBytes? = nil,
    allowed: AllowedFiles = AllowedFiles(), remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) -> String {
    var options = options
    try options.requireConsistent(path: path)
    try options.encryption.requireConsistent(path: path, format: format)
    guard key == nil || options.encryption.isWanted else {
      throw ImageFault(
        path, "there is a key, but the image is not to be encrypted",
        wayOut: "add -o encrypt.format=luks", kind: .refused)
    }
    // The layers below stay open, and with it locked, until the image is there.
    let base = try openBackingFile(
      of: path, format: format, options: options, allowed, remote: remote)
    let requested = options.diskByteCount
    options.diskByteCount = try diskByteCount(path, options: options, base: base)
    let content = try NewImage(path: path, format: format, options: options, key: key)
    let below = try base.map { layer throws(ImageFault) in try layer.storage.identity() }
    try withTarget(
      path, unless: below, "an image cannot be its own backing file", remote: remote
    ) { (storage, isNew) throws(ImageFault) in
      guard let name = options.dataFile else {
        return try content.write(to: storage, isNew: isNew)
      }
      // The data file first, so that no image names one that is not there.
      let others = try [storage.identity()] + below
      let data = BackingName(name).path(relativeTo: path)
      try withTarget(
        data, unless: others, "the data file is the image or its base", remote: nil
      ) { (file, isNewFile) throws(ImageFault) in
        try NewImage(path: data, format: .raw, options: options, key: nil)
          .write(to: file, isNew: isNewFile)
        try content.write(to: storage, isNew: isNew)
      }
    }
    return content.summary(requestedByteCount: requested)
  }

  /// What the user has to know of a base that is not in the image's folder: who opens the image
  /// will not open it, unless it is allowed (decision 34). nil when there is nothing to say.
  public static func baseNote(
    path: String, options: CreateOptions, remote: (any RemoteOpener)? = nil
  ) throws(ImageFault) -> String? {
    guard let name = options.backingFile, options.opensBackingFile,
      remote?.recognises(name) != true
    else { return nil }
    let base = BackingName(name).path(relativeTo: path)
    let gate = try FileGate.backing(AllowedFiles())
    do throws(SystemError) {
      let place = try FolderEntry.split(path).folder
      return try gate.foreignFolder(of: base, for: place).map {
        "\(path): its base '\(name)' is not in its folder: to use the image, say "
          + "--allow-backing '\($0)'"
      }
    } catch {
      throw ImageFault(base, error)
    }
  }

  private static func openBackingFile(
    of path: String, format: ImageFormat, options: CreateOptions, _ allowed: AllowedFiles,
    remote: (any RemoteOpener)?
  ) throws(ImageFault) -> [OpenedLayer] {
    guard let backingFile = options.backingFile else { return [] }
    guard format == .qcow2 else {
      throw ImageFault(
        path, "a raw image has no backing file", wayOut: "use -f qcow2", kind: .refused)
    }
    let name = BackingName(backingFile)
    let isRemote = remote?.recognises(backingFile) == true
    if !isRemote, let scheme = name.scheme {
      throw ImageFault(
        path,
        "the backing file '\(backingFile)' names the protocol '\(scheme)', but only files and "
          + "NBD URIs are supported", wayOut: "write ./\(backingFile) if it is a file",
        kind: .unsupported)
    }
    guard options.opensBackingFile else { return [] }
    return try OpenChain.open(
      path: isRemote ? backingFile : name.path(relativeTo: path), format: options.backingFormat,
      access: .readOnly, options: backingOptions(allowed, remote))
  }

  /// Only the size of the backing file is looked at.
  private static func backingOptions(
    _ allowed: AllowedFiles, _ remote: (any RemoteOpener)?
  ) -> OpenChain.Options {
    var options = OpenChain.Options(detection: .none, remote: remote)
    options.needsKeys = false
    options.allowed = allowed
    return options
  }

  private static func diskByteCount(
    _ path: String, options: CreateOptions, base: [OpenedLayer]
  ) throws(ImageFault) -> UInt64 {
    guard let byteCount = options.diskByteCount ?? base.first?.diskByteCount else {
      throw ImageFault(
        path, "the size of the image is not said", wayOut: "add it (for example 10G)",
        kind: .refused)
    }
    guard byteCount <= UInt64(Int64.max) - 511 else {
      throw ImageFault(path, "a disk of \(byteCount) bytes is too large", kind: .refused)
    }
    return byteCount.alignedUp(to: 512)
  }

  /// Opens or creates the file, locks it, and removes a new one again when `body` fails.
  ///
  /// - Parameters:
  ///   - others: files that it may not be.
  ///   - reason: what is wrong when it is one of them.
  private static func withTarget(
    _ path: String, unless others: [LayerStorage.Identity], _ reason: String,
    remote: (any RemoteOpener)?, _ body: (LayerFile, _ isNew: Bool) throws(ImageFault) -> Void
  ) throws(ImageFault) {
    let (storage, isNew) = try openTarget(path, remote)
    guard try !others.contains(storage.identity()) else {
      throw ImageFault(path, reason, wayOut: "choose another name", kind: .refused)
    }
    do throws(ImageError) {
      try storage.file.lockForWriting()
    } catch {
      throw ImageFault(path, error)
    }
    do throws(ImageFault) {
      try body(storage, isNew)
    } catch {
      if isNew {
        do throws(SystemError) {
          try FolderEntry.remove(path)
        } catch let removal {
          throw ImageFault(
            path, "\(error.cause), and the unfinished file stays (\(removal))",
            wayOut: "remove it", kind: error.kind)
        }
      }
      throw error
    }
  }

  private static func openTarget(
    _ path: String, _ remote: (any RemoteOpener)?
  ) throws(ImageFault) -> (storage: LayerFile, isNew: Bool) {
    if let remote, remote.recognises(path) {
      return (try remote.open(path, namedBy: nil, access: .readWrite), false)
    }
    do throws(SystemError) {
      return (LayerFile(try ImageFile(creating: path), path: path), true)
    } catch {
      guard error.isAlreadyThere else { throw ImageFault(path, error) }
    }
    do throws(SystemError) {
      return (LayerFile(try ImageFile(opening: path, access: .readWrite), path: path), false)
    } catch {
      throw ImageFault(path, error)
    }
  }
}

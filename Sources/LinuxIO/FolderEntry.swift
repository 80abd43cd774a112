// SPDX-License-Identifier: Apache-2.0
//
// Names of files in folders: removing and renaming one, making a new one durable, and where one
// leads. Source: unlink(2), rename(2), realpath(3), fsync(2) ("ensuring that the entry in the
// directory has also reached disk"). Blocks.

import CLinux
import Glibc

/// A file's name in its folder.
public enum FolderEntry {
  /// Removes the name `path`.
  public static func remove(_ path: String) throws(SystemError) {
    // SAFETY: the C call reads a C string and fills a local value during the call only.
    guard unsafe unlink(path) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "unlink")
    }
  }

  /// Gives the file at `path` the name `newPath`, in place of a file that has it.
  public static func rename(_ path: String, to newPath: String) throws(SystemError) {
    // SAFETY: as above.
    guard unsafe Glibc.rename(path, newPath) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "rename")
    }
  }

  /// The absolute path of the file that `path` leads to, without links in it. The file must exist.
  public static func resolve(_ path: String) throws(SystemError) -> String {
    // SAFETY: the C call reads a C string, and returns one in memory that is ours to free.
    guard let resolved = unsafe realpath(path, nil) else {
      throw SystemError(errno: Glibc.errno, call: "realpath")
    }
    defer { unsafe free(resolved) }
    return unsafe String(cString: resolved)
  }

  /// The folder of `path`, absolute and without links, and the last part of the name, which may be
  /// a link.
  public static func split(_ path: String) throws(SystemError) -> (folder: String, name: String) {
    let slash = path.lastIndex(of: "/")
    do throws(SystemError) {
      return (
        try resolve(slash.map { String(path[...$0]) } ?? "."),
        slash.map { String(path[path.index(after: $0)...]) } ?? path
      )
    } catch {
      throw SystemError(errno: error.errno, call: "open the folder")
    }
  }

  /// What a name stands for.
  public enum Kind: Sendable { case regularFile, blockDevice, folder, other }

  /// What the file at `path` is, whatever links lead there.
  public static func kind(of path: String) throws(SystemError) -> Kind {
    var status = stat()
    // SAFETY: the C call reads a C string and fills a local value during the call only.
    guard unsafe stat(path, &status) == 0 else {
      throw SystemError(errno: Glibc.errno, call: "stat")
    }
    switch status.st_mode & S_IFMT {
    case S_IFREG: return .regularFile
    case S_IFBLK: return .blockDevice
    case S_IFDIR: return .folder
    default: return .other
    }
  }

  /// Makes the entry of `path` in its folder durable.
  ///
  /// A folder that may be written but not read, or a filesystem that cannot do this, is no error.
  public static func synchronizeFolder(of path: String) throws(SystemError) {
    var folder = "."
    if let slash = path.lastIndex(of: "/") { folder = String(path[...slash]) }
    let descriptor = unsafe clinux_open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
    if descriptor == -EACCES { return }
    _ = try SystemError.check(descriptor, "open the folder")
    defer { close(descriptor) }
    guard fsync(descriptor) == 0 || Glibc.errno == EINVAL else {
      throw SystemError(errno: Glibc.errno, call: "fsync of the folder")
    }
  }
}

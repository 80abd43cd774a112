// SPDX-License-Identifier: Apache-2.0
//
// Which files of this machine an image may name: as its base, as the place of its data, as one of
// its parts. Whoever made the image chose the name, and what it names is read as a disk, so a guest
// would choose which of our files it sees. A file has to lie in the image's own folder, or the user
// allows it. See tools/decisions/0034. Looks at names, opens files.
// Source: security.md 2.3 (CVE-2011-3147, CVE-2024-32498), 4.2; openat2(2).

import LinuxIO

/// What the user allows images to name, besides the files in their own folders.
public struct AllowedFiles: Hashable, Sendable {
  /// Backing files and parts of images of other programs, folders of them, and the words of
  /// `FileGate`.
  public var backing: [String]
  /// Data files, or folders of them.
  public var data: [String]

  public init(backing: [String] = [], data: [String] = []) {
    self.backing = backing
    self.data = data
  }
}

/// Opens the files that images name, or does not.
struct FileGate: Sendable {
  /// A place that the user allows, without links in its name.
  private struct Place {
    let path: String
    /// Whether everything below is allowed, too.
    let isFolder: Bool
  }

  /// The words that stand for a place: every regular file, and not even the image's own folder.
  static let any = "any"
  static let none = "none"

  /// The option that allows more, for messages.
  private let option: String
  private var places: [Place] = []
  private var allowsAny = false
  private var allowsOwnFolder = true

  /// Below these the kernel's own objects have the names of files.
  private static let kernelFolders = ["/proc", "/sys"]

  /// - Parameters:
  ///   - allowed: files and folders, which must exist; and the words `any` and `none` if
  ///     `knowsWords`.
  ///   - option: the option that they were said with.
  init(_ allowed: [String], option: String, knowsWords: Bool) throws(ImageFault) {
    self.option = option
    for text in allowed {
      switch text {
      case Self.any where knowsWords: allowsAny = true
      case Self.none where knowsWords: allowsOwnFolder = false
      default:
        do throws(SystemError) {
          let path = try FolderEntry.resolve(text)
          places.append(Place(path: path, isFolder: try FolderEntry.kind(of: path) == .folder))
        } catch {
          throw ImageFault(
            text, "what \(option) names cannot be found (\(error))",
            wayOut: ImageFault.wayOut(of: error.errno))
        }
      }
    }
  }

  /// The gate for backing files and for the parts of images of other programs.
  static func backing(_ allowed: AllowedFiles) throws(ImageFault) -> FileGate {
    try FileGate(allowed.backing, option: "--allow-backing", knowsWords: true)
  }

  /// The gate for data files, which are written: each is named.
  static func data(_ allowed: AllowedFiles) throws(ImageFault) -> FileGate {
    try FileGate(allowed.data, option: "--allow-data-file", knowsWords: false)
  }

  /// Opens the file at `path`; nil when it is not allowed.
  ///
  /// A file is allowed that is below the folder of one of `images`, wherever links lead, or that
  /// the user allows. A device, and anything in /proc or /sys, has to be allowed by its own name.
  ///
  /// - Parameter images: paths of the images that may name what is in their folders.
  func open(
    _ path: String, besideAnyOf images: [String], access: ImageFile.Access
  ) throws(SystemError) -> LayerFile? {
    let target = try FolderEntry.resolve(path)
    let isNamed = places.contains { !$0.isFolder && $0.path == target }
    let root: String?
    if isNamed {
      root = String(target[..<(target.lastIndex(of: "/") ?? target.startIndex)])
    } else if Self.kernelFolders.contains(where: { Self.contains($0, target) }) {
      root = nil
    } else if allowsAny {
      root = "/"
    } else {
      let folders = places.filter(\.isFolder).map(\.path)
      root = (try folders + ownFolders(of: images)).first { Self.contains($0, target) }
    }
    guard var root else { return nil }
    if root.isEmpty { root = "/" }
    if !isNamed, try FolderEntry.kind(of: target) != .regularFile { return nil }
    let name = target.dropFirst(root == "/" ? 1 : root.utf8.count + 1)
    return LayerFile(
      try ImageFile(opening: String(name), beneath: root, access: access), path: path)
  }

  /// The fault of a file that is not opened.
  ///
  /// - Parameters:
  ///   - recorded: the name in the image.
  ///   - path: where it leads to.
  ///   - role: what the file would be for the image.
  func refusal(of recorded: String, at path: String, as role: String, image: String) -> ImageFault {
    let place = allowsOwnFolder ? "it is not in the folder of the image" : "it is not allowed"
    return ImageFault(
      image, "its \(role) '\(recorded)' is not opened: \(place)",
      wayOut: "if you trust it, say \(option) '\(path)'", kind: .refused)
  }

  private func ownFolders(of images: [String]) throws(SystemError) -> [String] {
    guard allowsOwnFolder else { return [] }
    var folders: [String] = []
    for image in images {
      folders.append(try FolderEntry.resolve(BackingName(".").path(relativeTo: image)))
    }
    return folders
  }

  /// Whether `file` is below `folder`; both are without links.
  private static func contains(_ folder: String, _ file: String) -> Bool {
    file.hasPrefix(folder == "/" ? "/" : folder + "/")
  }
}

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
  /// A file is allowed that is below one of `folders`, wherever links lead, or that the user
  /// allows. A device, and anything in /proc or /sys, has to be allowed by its own name. What was
  /// judged is what is opened: the file is found again by a name without links.
  ///
  /// - Parameter folders: those of the images that may name what is in their folders, as they were
  ///   found when the images were opened (`LayerFile.folder`).
  func open(
    _ path: String, besideAnyOf folders: [String], access: ImageFile.Access
  ) throws(SystemError) -> LayerFile? {
    let (folder, name) = try FolderEntry.split(path)
    let target = try FolderEntry.resolve("\(folder)/\(name)")
    guard let isNamed = allows(target, besideAnyOf: folders) else { return nil }
    if !isNamed, try FolderEntry.kind(of: target) != .regularFile { return nil }
    let file = try ImageFile(openingWithoutLinks: target, access: access)
    // It may have become another one since.
    if !isNamed, try file.medium() != .regularFile { return nil }
    return LayerFile(file, path: path, folder: folder)
  }

  /// Whether the user allows `target`, which is without links, by its own name; nil when it is not
  /// allowed at all.
  private func allows(_ target: String, besideAnyOf folders: [String]) -> Bool? {
    if places.contains(where: { !$0.isFolder && $0.path == target }) { return true }
    if Self.kernelFolders.contains(where: { Self.contains($0, target) }) { return nil }
    if allowsAny { return false }
    let allowed = places.filter(\.isFolder).map(\.path) + (allowsOwnFolder ? folders : [])
    return allowed.contains { Self.contains($0, target) } ? false : nil
  }

  /// The folder of the file at `path` if an image in `folder` may not name it; nil if it may.
  func foreignFolder(of path: String, for folder: String) throws(SystemError) -> String? {
    let target = try FolderEntry.resolve(path)
    guard allows(target, besideAnyOf: [folder]) == nil else { return nil }
    return try FolderEntry.split(target).folder
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

  /// Whether `file` is below `folder`; both are without links.
  private static func contains(_ folder: String, _ file: String) -> Bool {
    file.hasPrefix(folder == "/" ? "/" : folder + "/")
  }
}

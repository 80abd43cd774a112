// SPDX-License-Identifier: Apache-2.0
//
// From the backing file's name as recorded to a path. Names are names of files, whatever they look
// like: nothing in an image makes us talk to a network or interpret a pseudo protocol.
// This file performs no I/O.

/// A backing file's name as an image records it.
public struct BackingName: Hashable, Sendable {
  public let text: String

  public init(_ text: String) { self.text = text }

  /// The scheme that other programs would see in the name ("nbd", "json"), nil for a plain name.
  ///
  /// A colon before the first slash makes a scheme; `./a:b` is a file.
  public var scheme: String? {
    let first = text.prefix { $0 != "/" }
    guard let colon = first.firstIndex(of: ":") else { return nil }
    return String(first[..<colon])
  }

  /// The path of the file: a relative name counts from the folder of the image that records it.
  public func path(relativeTo imagePath: String) -> String {
    if text.hasPrefix("/") { return text }
    guard let slash = imagePath.lastIndex(of: "/") else { return text }
    return String(imagePath[...slash]) + text
  }
}

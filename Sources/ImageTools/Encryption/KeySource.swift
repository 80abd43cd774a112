// SPDX-License-Identifier: Apache-2.0
//
// Where the user keeps a key, in his words. Never the key itself: words of a command line are seen
// by everybody. This file performs no I/O.

/// A key that an encrypted image is opened with, or made.
public struct KeySource: Hashable, Sendable {
  public enum Place: Hashable, Sendable {
    /// A file; all of its bytes are the key.
    case file(String)
    /// The same for a file or pipe that is inherited.
    case descriptor(Int32)
  }

  /// The image of the chain that it is for, by path or by the name of its file; nil: any that has
  /// no key of its own.
  public let layer: String?
  public let place: Place

  public init(layer: String?, place: Place) {
    self.layer = layer
    self.place = place
  }

  /// "[IMAGE=]PATH"; a path with '=' in it needs a '=' before it.
  public init?(parsingFile text: String) {
    let (layer, rest) = KeySource.split(text)
    guard !rest.isEmpty else { return nil }
    self.init(layer: layer, place: .file(rest))
  }

  /// "[IMAGE=]NUMBER".
  public init?(parsingDescriptor text: String) {
    let (layer, rest) = KeySource.split(text)
    guard let number = Int32(rest), number >= 0 else { return nil }
    self.init(layer: layer, place: .descriptor(number))
  }

  /// The places that the values of `--key-file` and of `--key-fd` name.
  public static func list(
    files: [String], descriptors: [String]
  ) throws(ImageFault) -> [KeySource] {
    var sources: [KeySource] = []
    for text in files {
      guard let source = KeySource(parsingFile: text) else {
        throw ImageFault(
          "--key-file", "'\(text)' is not [IMAGE=]PATH", wayOut: "write /run/keys/vm1",
          kind: .refused)
      }
      sources.append(source)
    }
    for text in descriptors {
      guard let source = KeySource(parsingDescriptor: text) else {
        throw ImageFault(
          "--key-fd", "'\(text)' is not [IMAGE=]NUMBER", wayOut: "write 3", kind: .refused)
      }
      sources.append(source)
    }
    return sources
  }

  private static func split(_ text: String) -> (layer: String?, rest: String) {
    guard let sign = text.firstIndex(of: "=") else { return (nil, text) }
    let layer = String(text[..<sign])
    return (layer.isEmpty ? nil : layer, String(text[text.index(after: sign)...]))
  }
}

extension KeySource: CustomStringConvertible {
  /// How messages name it.
  public var description: String {
    switch place {
    case .file(let path): path
    case .descriptor(let number): "--key-fd \(number)"
    }
  }
}

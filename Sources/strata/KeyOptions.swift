// SPDX-License-Identifier: Apache-2.0
//
// Where a verb on images has the key of the image from. Never from its own words.

import ArgumentParser
import ImageTools

struct KeyOptions: ParsableArguments {
  @Option(help: ArgumentHelp("File with the key of an encrypted image.", valueName: "path"))
  var keyFile: String?

  @Option(help: ArgumentHelp("Descriptor that the key can be read from.", valueName: "number"))
  var keyFd: Int32?

  /// nil when no key was named.
  func source() throws -> KeySource? {
    try Self.source(keyFile, keyFd, "--key-file", "--key-fd")
  }

  /// - Parameter names: what to say when no key was named.
  func required(_ names: String) throws -> KeySource { try source() ?? Self.missing(names) }

  static func source(
    _ path: String?, _ number: Int32?, _ pathName: String, _ numberName: String
  ) throws -> KeySource? {
    switch (path, number) {
    case (nil, nil): return nil
    case (let path?, nil): return KeySource(layer: nil, place: .file(path))
    case (nil, let number?): return KeySource(layer: nil, place: .descriptor(number))
    case (.some, .some):
      throw ValidationError("\(pathName) and \(numberName) exclude each other.")
    }
  }

  static func missing(_ names: String) throws -> KeySource {
    throw ValidationError("There is no key: say \(names).")
  }
}

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
    switch (keyFile, keyFd) {
    case (nil, nil): return nil
    case (let path?, nil): return KeySource(layer: nil, place: .file(path))
    case (nil, let number?): return KeySource(layer: nil, place: .descriptor(number))
    case (.some, .some): throw ValidationError("--key-file and --key-fd exclude each other.")
    }
  }
}

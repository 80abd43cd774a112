// SPDX-License-Identifier: Apache-2.0
//
// Where a verb on a whole chain has the keys of its images from. Never from its own words.

import ArgumentParser
import ImageTools

struct ChainKeyOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "File with the key of an encrypted image, or of the named one of its chain; may be repeated.",
      valueName: "[image=]path"))
  var keyFile: [String] = []

  @Option(
    help: ArgumentHelp(
      "Descriptor that the key can be read from; may be repeated.", valueName: "[image=]number"))
  var keyFd: [String] = []

  /// The keys; an empty ring when none was named.
  func ring() throws -> KeyRing {
    var reader = KeyReader()
    return try reader.ring(try KeySource.list(files: keyFile, descriptors: keyFd))
  }
}

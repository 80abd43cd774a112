// SPDX-License-Identifier: Apache-2.0
//
// The options of the verbs on images about the files that images name.

import ArgumentParser
import ImageTools

struct AllowedFileOptions: ParsableArguments {
  @OptionGroup var bases: AllowedBaseOptions

  @Option(
    help: ArgumentHelp(
      "Let images name this data file, which is not in their folder; may be repeated.",
      valueName: "path"))
  var allowDataFile: [String] = []

  var allowed: AllowedFiles {
    AllowedFiles(backing: bases.allowBacking, data: allowDataFile)
  }
}

/// For a verb that opens no data file.
struct AllowedBaseOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Let images name this file, or all in this folder, as their base, though it is not in their"
        + " own folder; may be repeated.", valueName: "path|any|none"))
  var allowBacking: [String] = []

  var allowed: AllowedFiles { AllowedFiles(backing: allowBacking) }
}

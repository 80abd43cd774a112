// SPDX-License-Identifier: Apache-2.0
//
// From a configuration file to the options that it stands for: each key is a long option without
// its dashes. Source: stratad(8), "CONFIGURATION FILE".

import ArgumentParser
import Control
import LinuxIO

/// What a configuration file says, as arguments.
struct ConfiguredOptions {
  private static let fileByteCountMax = 1 << 20
  /// Keys whose value is yes or no.
  private static let flags: Set<String> = [
    "read-only", "tcp-without-tls", "tls-verify-peer", "oldstyle", "hide-exports", "fork",
    "print-drive",
  ]

  /// Arguments for stratad, to stand before those that the user gave.
  private(set) var server: [String] = []
  private(set) var exports: [NamedExport] = []

  /// - Throws: what is wrong with the file, with its line.
  init(path: String) throws {
    let bytes: [UInt8]
    do throws(SystemError) {
      bytes = try SmallFile.read(path, byteCountMax: ConfiguredOptions.fileByteCountMax)
    } catch {
      throw ControlError(path, error)
    }
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw ControlError(path, "the file is not UTF-8")
    }
    let file = try ConfigFile(parsing: text, path: path)
    for entry in file.server {
      server += try ConfiguredOptions.arguments(entry, "\(path):\(entry.line)") {
        guard entry.key != "config", entry.key != "export" else {
          throw ValidationError("'\(entry.key)' is for the command line")
        }
        _ = try StratadCommand.parse($0)
      }
    }
    for export in file.exports {
      var own: [String] = []
      var image: String?
      for entry in export.entries {
        if entry.key == "image" {
          image = entry.value
          continue
        }
        own += try ConfiguredOptions.arguments(entry, "\(path):\(entry.line)") {
          _ = try ExportOptions.parse($0)
        }
      }
      guard let image else {
        throw ControlError(
          "\(path):\(export.line)", "the export has no image", wayOut: "write image = FILE")
      }
      exports.append(
        NamedExport(name: export.name, image: image, options: try ExportOptions.parse(own)))
    }
  }

  /// The arguments that an entry stands for, tried out alone so that a fault has its line.
  private static func arguments(
    _ entry: ConfigFile.Entry, _ place: String, _ attempt: ([String]) throws -> Void
  ) throws(ControlError) -> [String] {
    var arguments = ["--\(entry.key)", entry.value]
    if flags.contains(entry.key) {
      switch entry.value {
      case "yes", "true", "on": arguments = ["--\(entry.key)"]
      case "no", "false", "off": arguments = []
      default: throw ControlError(place, "'\(entry.value)' is neither yes nor no")
      }
    }
    do {
      guard !entry.key.isEmpty, !entry.key.hasPrefix("-") else {
        throw ValidationError("there is no key '\(entry.key)'")
      }
      try attempt(arguments)
    } catch {
      throw ControlError(place, StratadCommand.message(for: error))
    }
    return arguments
  }
}

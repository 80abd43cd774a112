// SPDX-License-Identifier: Apache-2.0
//
// The images of `Images/` with what their manifest says of them. This file reads files.

import Foundation
import TestSupport
import Testing

/// One image of the corpus.
struct CorpusImage: Decodable, Sendable, CustomTestStringConvertible {
  let file: String
  /// "opens" or "refuses": what Strata has to do with it.
  let strata: String
  /// SHA-256 of what a guest would read, where QEMU can read it.
  let contentHash: String?

  private enum CodingKeys: String, CodingKey {
    case file, strata
    case contentHash = "content_sha256"
  }

  var testDescription: String { file }
  var format: String { file.hasSuffix(".raw") ? "raw" : "qcow2" }
  var folder: String { String(file.prefix { $0 != "/" }) }
  var name: String { String(file.drop { $0 != "/" }.dropFirst()) }

  /// The corpus, found from this source file.
  static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent().appendingPathComponent("Images").path

  static let all: [CorpusImage] = {
    struct Manifest: Decodable { let images: [CorpusImage] }
    do {
      let data = try Data(contentsOf: URL(fileURLWithPath: root + "/MANIFEST.json"))
      return try JSONDecoder().decode(Manifest.self, from: data).images
    } catch {
      preconditionFailure("the corpus has no readable manifest: \(error)")
    }
  }()

  /// Those that QEMU reads whole and whose disk is small enough to compare byte for byte.
  static let readable = all.filter { $0.strata == "opens" && $0.contentHash != nil }

  /// Those that `check` finds clean before and after: a damaged image stays damaged. A tebibyte
  /// takes too long to compare.
  static let writable = readable.filter {
    $0.folder != "broken" && $0.file != "qcow2/one-tebibyte.qcow2"
  }

  static let refused = all.filter { $0.strata == "refuses" }
}

/// A private copy of the corpus folder that an image lives in, backing files included.
final class CorpusCopy {
  let temporary: TemporaryFolder
  let image: CorpusImage

  init(_ image: CorpusImage) throws {
    self.image = image
    temporary = try TemporaryFolder()
    try run(
      "cp", "-r", "--sparse=always", "\(CorpusImage.root)/\(image.folder)", temporary.path(""))
  }

  var path: String { temporary.path("\(image.folder)/\(image.name)") }

  /// Runs a tool in the image's folder: QEMU looks for a data file where it runs itself.
  func runInside(_ words: String...) throws {
    try runTool("env", ["-C", temporary.path(image.folder)] + words)
  }

  func serve(_ arguments: String...) throws -> Daemon {
    let socket = temporary.path("nbd.sock")
    return try Daemon(
      daemonPath(),
      [path, "--format", image.format, "--socket", socket] + arguments,
      socketPath: socket)
  }
}

extension Daemon {
  /// The address that libnbd's and QEMU's tools take.
  var uri: String { "nbd+unix:///?socket=\(socketPath)" }
}

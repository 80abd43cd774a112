// SPDX-License-Identifier: Apache-2.0
//
// `strata resize`: makes the disk of an image larger, or that of a running stratad.

import ArgumentParser
import Control
import ImageTools
import LinuxIO

struct Resize: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make a disk larger.",
    discussion: """
      PLACE is an image that nobody serves, or the path that a running stratad was given with \
      --control. What the disk grows by reads as zeroes, whatever a base holds there. Clients of a \
      daemon learn of it when they connect; those that are there may use it at once.
      """)

  @Option(
    name: .short, help: "Format of the image: qcow2 or raw; qcow2 by its magic when left out.")
  var format: String?

  @OptionGroup var keys: ChainKeyOptions
  @OptionGroup var named: AllowedFileOptions
  @OptionGroup var remote: RemoteOptions
  @OptionGroup var choice: ExportChoice

  @Argument(help: "The image that nobody serves, or the daemon's control socket.")
  var place: String

  @Argument(help: "The new size, such as 20G, or what is added, such as +5G; disks never shrink.")
  var size: String

  func run() throws {
    let target = try ResizeTarget(size)
    let isDaemon = FileIdentity(ofPath: place)?.isSocket == true
    let byteCount = isDaemon ? try order(target) : try grow(target)
    print("the disk has \(byteCount) bytes")
  }

  private func order(_ target: ResizeTarget) throws -> UInt64 {
    guard format == nil, keys.keyFile.isEmpty, keys.keyFd.isEmpty else {
      throw ValidationError("-f and keys are for an image, and \(place) is a control socket")
    }
    var old: UInt64 = 0
    if target.isAddition {
      let status = try ControlClient.ask(.status(export: choice.export), at: place).value
      guard let byteCount = status["disk-bytes"]?.integer, byteCount >= 0 else {
        throw ControlError(place, "the daemon does not say how large the disk is")
      }
      old = UInt64(byteCount)
    }
    let byteCount = target.byteCount(after: old)
    _ = try ControlClient.ask(.resize(byteCount: byteCount, export: choice.export), at: place)
    return byteCount
  }

  private func grow(_ target: ResizeTarget) throws -> UInt64 {
    guard choice.export == nil else {
      throw ValidationError("--export is for a control socket, and \(place) is none")
    }
    var options = Control.Resize.Options()
    options.format = try format.map { try CreateOptions.format($0, path: place) }
    options.allowed = named.allowed
    options.keys = try keys.ring()
    return try remote.open { remote in
      try Control.Resize.run(
        path: place, options: options, remote: remote,
        newByteCount: { target.byteCount(after: $0) })
    }
  }
}

/// A size, or how much larger a disk is to be.
struct ResizeTarget {
  let isAddition: Bool
  private let byteCount: UInt64

  init(_ text: String) throws {
    isAddition = text.hasPrefix("+")
    byteCount = try parseSize(isAddition ? String(text.dropFirst()) : text, of: "SIZE")
  }

  /// The size in bytes of a disk that has `old` of them. Both are less than 8 EiB.
  func byteCount(after old: UInt64) -> UInt64 { isAddition ? old + byteCount : byteCount }
}

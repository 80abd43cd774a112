// SPDX-License-Identifier: Apache-2.0
//
// `strata nbd copy`: a disk from an export or a raw file to another one.

import ArgumentParser
import LinuxIO
import NBDClient
import NBDProtocol

struct NBDCopy: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "copy", abstract: "Copy an export or a raw file to another one.",
    discussion: """
      Each of the two is a URI or the name of a raw file. What reads as zeroes stays a hole where \
      the target can. A new file gets its name when everything is in it; the first error ends the \
      copy with status 1.
      """)

  @Option(help: ArgumentHelp("Pieces of 1 MiB under way at once.", valueName: "count"))
  var requests = 16

  @Option(help: ArgumentHelp("When a connection is lost, try for so long.", valueName: "seconds"))
  var reconnect: Int?

  @Flag(help: "Replace the target if it is an existing file.")
  var overwrite = false

  @Flag(name: .shortAndLong, help: "Print nothing.")
  var quiet = false

  @OptionGroup var connect: ConnectOptions

  @Argument(help: "Where to copy from.")
  var source: String

  @Argument(help: "Where to copy to.")
  var target: String

  /// Bytes between two flushes of a target that may have to be written again.
  private static let checkpointByteCount = 32 << 20

  func validate() throws {
    guard (1...256).contains(requests) else {
      throw ValidationError("--requests is a number from 1 to 256.")
    }
    if let reconnect, !(1...86_400).contains(reconnect) {
      throw ValidationError("--reconnect is a number of seconds from 1 to 86400.")
    }
    guard NBDURI.looksLike(source) || NBDURI.looksLike(target) else {
      throw ValidationError("One of the two has to be an NBD URI; cp(1) copies files.")
    }
  }

  func run() throws {
    // Addresses are parsed before anything is made.
    let sourceURI = NBDURI.looksLike(source) ? try parseURI(source) : nil
    let targetURI = NBDURI.looksLike(target) ? try parseURI(target) : nil
    // What is in flight at a checkpoint comes on top of what lies between two.
    let replayByteCountMax = 2 * Self.checkpointByteCount + requests << 20
    let policy = reconnect.map {
      ClientOptions.Reconnect(secondsMax: $0, replayByteCountMax: replayByteCountMax)
    }
    let checkpoint = reconnect.map { _ in UInt64(Self.checkpointByteCount) }
    let sourceOptions = connect.options(
      contexts: .named(["base:allocation"]), reconnect: policy)
    let targetOptions = connect.options(contexts: .none, reconnect: policy)
    let (sourcePath, targetPath) = (source, target)
    let (requests, overwrite) = (requests, overwrite)
    let progress = quiet ? nil : ProgressLine(.human, needsTerminal: true)
    try runToEnd {
      let source: any CopySource
      if let sourceURI {
        source = RemoteDisk(try await open(sourceURI, sourceOptions))
      } else {
        source = try FileSource(path: sourcePath)
      }
      if let targetURI {
        let connection = try await open(targetURI, targetOptions)
        guard connection.byteCount >= source.byteCount else {
          throw CopyFault(
            "\(targetURI): \(connection.byteCount) bytes do not hold the \(source.byteCount) of"
              + " the source")
        }
        guard !connection.export.flags.contains(.readOnly) else {
          throw CopyFault("\(targetURI): the export is read-only")
        }
        let disk = RemoteDisk(connection, checkpointByteCount: checkpoint)
        try await copy(source, disk, requests, progress)
      } else {
        let file = try FileTarget(
          path: targetPath, byteCount: source.byteCount, replaces: overwrite)
        do {
          try await copy(source, file, requests, progress)
        } catch {
          file.abandon()
          throw error
        }
      }
    }
  }

  private func copy(
    _ source: any CopySource, _ target: any CopyTarget, _ requests: Int,
    _ progress: ProgressLine?
  ) async throws {
    do {
      let report = try await Copier(from: source, to: target, requestsMax: requests).run {
        progress?.show($0, of: $1)
      }
      progress?.end()
      if progress != nil {
        print(
          "copied \(report.dataByteCount) bytes of data and \(report.zeroByteCount) of zeroes")
      }
    } catch {
      progress?.end()
      throw error
    }
  }
}

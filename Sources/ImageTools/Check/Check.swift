// SPDX-License-Identifier: Apache-2.0
//
// Checks an image and, if asked, repairs its reference counts. Counters and exit codes as those of
// qemu-img check.

import BlockTypes
import LinuxIO
import Qcow2

/// Checks images.
public enum Check {
  public enum Repair: String, Sendable {
    case none
    /// Only give back clusters that nobody uses.
    case leaks
    /// Also correct counts that are too low and COPIED flags, and turn entries that cannot be right
    /// into what reads safest.
    case all
  }

  public struct Options {
    /// nil: found by its magic.
    public var format: ImageFormat?
    public var repair = Repair.none
    /// The image stays as it is, and a copy of this name is made and repaired.
    public var copyPath: String?
    /// Told of the copy while it is unfinished.
    public var unfinished: UnfinishedFile?
    /// Off only for a look at an image that somebody else uses.
    public var takesLocks = true
    public var remote: (any RemoteOpener)?
    /// Memory for reference counts; with less of it the tables are read more often.
    public var memoryByteCountMax = Checker<ImageFault>.defaultMemoryByteCountMax
    /// Told now and then how far the check is, in millionths.
    public var progress: (Int) -> Void = { _ in }

    public init() {}
  }

  /// What a check found, after repairs if there were any.
  public struct Outcome: Sendable {
    public let path: String
    public let report: CheckReport
    public var repairedLeakCount = 0
    public var repairedCorruptionCount = 0
    /// Why a repair that was asked for was not made, or not wholly; nil when nothing is to be said.
    public var refusal: String?

    public var hasRepaired: Bool { repairedLeakCount + repairedCorruptionCount > 0 }

    /// 0 clean, 2 corruptions, 3 leaks only.
    public var exitCode: Int32 {
      report.corruptionCount > 0 ? 2 : report.leakCount > 0 ? 3 : 0
    }
  }

  /// The exit code of a check that could not be made.
  public static func exitCode(of fault: ImageFault) -> Int32 { fault.kind == .unsupported ? 63 : 1 }

  /// Checks the image at `path`; each thing found goes to `finding` as it is found, and each repair
  /// before it is made.
  public static func run(
    path: String, options: Options, finding: @escaping (CheckFinding) -> Void
  ) throws(ImageFault) -> Outcome {
    guard let copyPath = options.copyPath else {
      return try runInPlace(path: path, options: options, finding: finding)
    }
    let unfinished = options.unfinished ?? UnfinishedFile()
    try CopyImage.run(from: path, to: copyPath, takesLocks: options.takesLocks, unfinished)
    defer { unfinished.end() }
    do throws(ImageFault) {
      return try runInPlace(path: copyPath, options: options, finding: finding)
    } catch {
      try CopyImage.remove(copyPath, because: error)
    }
  }

  private static func runInPlace(
    path: String, options: Options, finding: @escaping (CheckFinding) -> Void
  ) throws(ImageFault) -> Outcome {
    let layers = try OpenChain.open(
      path: path, format: options.format,
      access: options.repair == .none ? .readOnly : .readWrite,
      options: OpenChain.Options(
        detection: .top, takesLocks: options.takesLocks, followsBackingFiles: false,
        requiresSupport: false, rebuildsDirty: false, changesDisk: false,
        remote: options.remote))
    guard let header = layers[0].header else {
      throw ImageFault(path, "a raw image has no metadata to check", kind: .unsupported)
    }
    let storage = layers[0].storage
    do throws(ImageError) {
      try header.requireKnownFeatures()
    } catch {
      throw ImageFault(path, error)
    }
    let (first, contested) = try check(storage, header, options, finding)
    let repaired: Header
    switch options.repair {
    case .none: return Outcome(path: path, report: first)
    case .leaks:
      if first.corruptionCount > 0 {
        var outcome = Outcome(path: path, report: first)
        outcome.refusal = "not repaired: it has more than leaks; use -r all"
        return outcome
      }
      repaired = try RebuildRefcounts.correct(storage, header, first)
      try storage.synchronize()
    case .all:
      if first.isClean, !header.isDirty, !header.isMarkedCorrupt {
        return Outcome(path: path, report: first)
      }
      repaired = try ImageRepair(storage: storage, finding: finding)
        .run(header, first, contested: contested)
    }
    return outcome(
      path, first, after: try check(storage, repaired, options, finding).report)
  }

  private static func outcome(
    _ path: String, _ first: CheckReport, after report: CheckReport
  ) -> Outcome {
    var outcome = Outcome(
      path: path, report: report,
      repairedLeakCount: max(0, first.leakCount - report.leakCount),
      repairedCorruptionCount: max(0, first.corruptionCount - report.corruptionCount))
    if report.corruptionCount > 0 {
      outcome.refusal =
        "\(report.corruptionCount) errors could not be repaired; copy what can be read "
        + "(qemu-img convert --salvage)"
    }
    return outcome
  }

  private static func check(
    _ storage: LayerFile, _ header: Header, _ options: Options,
    _ finding: @escaping (CheckFinding) -> Void
  ) throws(ImageFault) -> (report: CheckReport, contested: Set<UInt64>) {
    var checker = try MetadataReader(storage).makeChecker(
      header, memoryByteCountMax: options.memoryByteCountMax, finding: finding)
    checker.progress = options.progress
    try checker.run()
    return (checker.report, checker.contestedTables)
  }
}

extension Check.Outcome {
  /// The text that qemu-img prints.
  public var humanText: String {
    var text = ""
    if hasRepaired {
      text += "The following inconsistencies were found and repaired:\n\n"
      text += "    \(repairedLeakCount) leaked clusters\n"
      text += "    \(repairedCorruptionCount) corruptions\n\n"
      text += "Double checking the fixed image now...\n"
    }
    if report.isClean { text += "No errors were found on the image.\n" }
    if report.corruptionCount > 0 {
      text += "\n\(report.corruptionCount) errors were found on the image.\n"
      text += "Data may be corrupted, or further writes to the image may corrupt it.\n"
    }
    if report.leakCount > 0 {
      text += "\n\(report.leakCount) leaked clusters were found on the image.\n"
      text += "This means waste of disk space, but no harm to data.\n"
    }
    if report.totalClusterCount > 0 && report.allocatedClusterCount > 0 {
      text += "\(report.allocatedClusterCount)/\(report.totalClusterCount) = "
      text += "\(percent(report.allocatedClusterCount, of: report.totalClusterCount)) allocated, "
      text += "\(percent(report.fragmentedClusterCount, of: report.allocatedClusterCount)) "
      text += "fragmented, "
      text += "\(percent(report.compressedClusterCount, of: report.allocatedClusterCount)) "
      text += "compressed clusters\n"
    }
    return text + "Image end offset: \(report.imageEndOffset)\n"
  }

  /// "12.50%".
  private func percent(_ part: UInt64, of whole: UInt64) -> String {
    // Cluster counts are below 2^55, so the product fits.
    let hundredths = (part * 10_000 + whole / 2) / whole
    let rest = hundredths % 100
    return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)%"
  }

  /// The object that qemu-img prints for `--output=json`.
  public var jsonText: String {
    var json = JSONWriter()
    json.beginObject()
    json.field("image-end-offset", report.imageEndOffset)
    if report.totalClusterCount > 0 { json.field("total-clusters", report.totalClusterCount) }
    json.field("check-errors", 0)
    if report.corruptionCount > 0 { json.field("corruptions", report.corruptionCount) }
    if report.leakCount > 0 { json.field("leaks", report.leakCount) }
    if repairedCorruptionCount > 0 { json.field("corruptions-fixed", repairedCorruptionCount) }
    if repairedLeakCount > 0 { json.field("leaks-fixed", repairedLeakCount) }
    if report.allocatedClusterCount > 0 {
      json.field("allocated-clusters", report.allocatedClusterCount)
    }
    if report.fragmentedClusterCount > 0 {
      json.field("fragmented-clusters", report.fragmentedClusterCount)
    }
    if report.compressedClusterCount > 0 {
      json.field("compressed-clusters", report.compressedClusterCount)
    }
    json.field("filename", path)
    json.field("format", "qcow2")
    json.end()
    return json.finish()
  }
}

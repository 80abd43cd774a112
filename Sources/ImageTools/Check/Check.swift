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
    /// Also correct counts that are too low, and COPIED flags.
    case all
  }

  /// What a check found, after repairs if there were any.
  public struct Outcome: Sendable {
    public let path: String
    public let report: CheckReport
    public var repairedLeakCount = 0
    public var repairedCorruptionCount = 0
    /// Why a repair that was asked for was not made; nil when there was nothing to refuse.
    public var refusal: String?

    public var hasRepaired: Bool { repairedLeakCount + repairedCorruptionCount > 0 }

    /// 0 clean, 2 corruptions, 3 leaks only.
    public var exitCode: Int32 {
      report.corruptionCount > 0 ? 2 : report.leakCount > 0 ? 3 : 0
    }
  }

  /// The exit code of a check that could not be made.
  public static func exitCode(of fault: ImageFault) -> Int32 { fault.kind == .unsupported ? 63 : 1 }

  /// Checks the image at `path`; each thing found goes to `finding` as it is found.
  public static func run(
    path: String, format: ImageFormat?, repair: Repair, takesLocks: Bool,
    remote: (any RemoteOpener)? = nil,
    finding: @escaping (CheckFinding) -> Void
  ) throws(ImageFault) -> Outcome {
    let access: ImageFile.Access = repair == .none ? .readOnly : .readWrite
    let layers = try OpenChain.open(
      path: path, format: format, access: access,
      options: OpenChain.Options(
        detection: .top, takesLocks: takesLocks, followsBackingFiles: false,
        requiresSupport: false, rebuildsDirty: false, changesDisk: false, remote: remote))
    guard let header = layers[0].header else {
      throw ImageFault(path, "a raw image has no metadata to check", kind: .unsupported)
    }
    let storage = layers[0].storage
    do throws(ImageError) {
      try header.requireCheckable()
    } catch {
      throw ImageFault(path, error)
    }
    let first = try report(storage, header, finding)
    let repairs =
      switch repair {
      case .none: false
      case .leaks: first.leakCount > 0 && first.corruptionCount == 0
      case .all: !first.isClean || header.isDirty || header.isMarkedCorrupt
      }
    guard repairs else { return unrepaired(path, first, repair) }
    guard first.tableCorruptionCount == 0 else { return unrepaired(path, first, repair) }
    var clean = header
    clean.incompatibleFeatures.remove(.corrupt)
    let repaired = try RebuildRefcounts.run(on: storage, header: clean)
    return Outcome(
      path: path, report: try report(storage, repaired, finding),
      repairedLeakCount: first.leakCount, repairedCorruptionCount: first.corruptionCount)
  }

  /// The outcome of a check that repaired nothing, with the reason if something was asked for.
  private static func unrepaired(
    _ path: String, _ report: CheckReport, _ repair: Repair
  ) -> Outcome {
    var outcome = Outcome(path: path, report: report)
    if repair == .none || report.isClean { return outcome }
    outcome.refusal =
      report.tableCorruptionCount > 0
      ? "not repaired: its tables are damaged, which new reference counts do not cure; copy what "
        + "can be read (qemu-img convert), or repair it with loss (qemu-img check -r all)"
      : "not repaired: it has more than leaks; use -r all"
    return outcome
  }

  private static func report(
    _ storage: LayerFile, _ header: Header, _ finding: @escaping (CheckFinding) -> Void
  ) throws(ImageFault) -> CheckReport {
    var checker = try RebuildRefcounts.makeChecker(
      try MetadataReader(storage), header, finding: finding)
    try checker.run()
    return checker.report
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

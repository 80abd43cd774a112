// SPDX-License-Identifier: Apache-2.0
//
// `strata check`: looks for inconsistencies of an image, with the exit codes of qemu-img check.

import ArgumentParser
import Control
import ImageTools

struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check an image's metadata.",
    discussion: """
      Exit codes: 0 no errors, 1 the check could not be made, 2 the image is corrupt, 3 clusters \
      are leaked, 63 the image's format or features cannot be checked.
      """)

  @Option(name: .short, help: "Format of the image; found by its magic when left out.")
  var format: String?

  @Option(help: "human or json.")
  var output = OutputFormat.human

  @Option(
    name: .short,
    help: "Repair: leaks, or all, also with loss; what is lost is said before it is done.")
  var repair: Repair?

  @Option(
    help: ArgumentHelp(
      "Repair a copy of the image, a new file; the image stays as it is.",
      valueName: "copy"))
  var to: String?

  @Flag(name: .short, help: "Show on standard error how far the check is.")
  var progress = false

  @Flag(name: [.customShort("U"), .customLong("force-share")], help: "Look although it is in use.")
  var forceShare = false

  @Flag(name: .shortAndLong, help: "Print nothing but errors.")
  var quiet = false

  @Argument(help: "The image to check.")
  var file: String

  enum Repair: String, ExpressibleByArgument, CaseIterable {
    case leaks
    case all
  }

  /// Findings that are printed one by one; the counters tell the rest.
  private static let findingsMax = 1000

  func run() throws {
    if forceShare && repair != nil && to == nil {
      throw ValidationError("-U and -r exclude each other: a repair needs the image for itself.")
    }
    if to != nil && repair == nil {
      throw ValidationError("--to is where a repaired image goes: say what to repair with -r.")
    }
    var foundCount = 0
    let isHuman = output == .human
    do {
      let outcome = try RemoteOptions.open(RemotePolicy()) { remote in
        try ImageTools.Check.run(path: file, options: try options(remote)) { finding in
          // What a repair changes is said in any case.
          if finding.severity == .repair { return report(finding.text) }
          foundCount += 1
          if isHuman && foundCount <= Self.findingsMax { report(finding.text) }
        }
      }
      if foundCount > Self.findingsMax && isHuman {
        report("… and \(foundCount - Self.findingsMax) more")
      }
      if !quiet || outcome.exitCode != 0 {
        isHuman ? print(outcome.humanText, terminator: "") : print(outcome.jsonText)
      }
      if let refusal = outcome.refusal { report("strata: \(outcome.path): \(refusal)") }
      throw ExitCode(outcome.exitCode)
    } catch let fault as ImageFault {
      report("strata: \(fault)")
      throw ExitCode(ImageTools.Check.exitCode(of: fault))
    }
  }

  private func options(_ remote: any RemoteOpener) throws -> ImageTools.Check.Options {
    var options = ImageTools.Check.Options()
    options.format = try format.map { try CreateOptions.format($0, path: file) }
    options.repair = repair.flatMap { .init(rawValue: $0.rawValue) } ?? .none
    options.copyPath = to
    if to != nil {
      let unfinished = UnfinishedFile()
      options.unfinished = unfinished
      try StopSignals.remove(unfinished)
    }
    options.takesLocks = !forceShare
    options.remote = remote
    if progress {
      var last = -1
      options.progress = { millionths in
        guard millionths / 1000 != last else { return }
        last = millionths / 1000
        let tenths = last % 10
        report("    (\(last / 10).\(tenths)/100%)")
      }
    }
    return options
  }
}

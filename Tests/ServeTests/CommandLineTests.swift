// SPDX-License-Identifier: Apache-2.0
//
// The words of the command line: help, manual pages, `strata serve`.

import Foundation
import TestSupport
import Testing

@Suite struct `The options of stratad` {
  private func options(in text: String) -> Set<String> {
    Set(text.matches(of: /--[a-z][a-z-]*[a-z]/).map { String($0.output) })
  }

  @Test func `are the same in the help and in the manual page`() throws {
    let result = try runTool(ServedProcess.path(of: "stratad"), "--help")
    #expect(result.code == 0)
    let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("../../tools/man/stratad.8")
    let manual = try String(contentsOf: page, encoding: .utf8).replacing("\\-", with: "-")
    let tagged = manual.split(separator: "\n").filter { $0.hasPrefix(".B") && $0.contains("--") }
    #expect(options(in: result.output) == options(in: tagged.joined(separator: "\n")))
  }

  @Test(arguments: [
    [], ["--no-such-option"], ["a", "b"], ["a", "--format", "vmdk"], ["a", "--aio", "x"],
    ["--export", "a"], ["--export", "a="], ["--export", "a=b,no-such-option"],
    ["--format", "raw", "--export", "a=b"],
  ])
  func `that are wrong end it with 2`(arguments: [String]) throws {
    let process = try ServedProcess([try ServedProcess.path(of: "stratad")] + arguments)
    #expect(try process.waitForExit() == 2)
    #expect(process.outputText == "")
    #expect(process.errorText.hasPrefix("Error: "))
  }
}

@Suite struct `The options of strata` {
  @Test(arguments: [
    "create", "convert", "info", "check", "map", "status", "exports", "clients", "kick", "reload",
    "resize",
    "attach", "detach", "lint",
  ])
  func `are all in the manual page`(verb: String) throws {
    let result = try runTool(ServedProcess.path(of: "strata"), verb, "--help")
    #expect(result.code == 0)
    let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("../../tools/man/strata.1")
    let manual = try String(contentsOf: page, encoding: .utf8).replacing("\\-", with: "-")
    let words = result.output.split(separator: "\n").filter { $0.hasPrefix("  -") }
      .flatMap { $0.split(whereSeparator: { " ,|[]".contains($0) }) }
    for option in words where option.hasPrefix("-") {
      #expect(manual.contains(option), "\(verb) \(option)")
    }
  }
}

@Suite struct `The options of strata nbd` {
  @Test(arguments: ["list", "info", "map", "copy", "ping"])
  func `are all in the manual page`(verb: String) throws {
    let result = try runTool(ServedProcess.path(of: "strata"), "nbd", verb, "--help")
    #expect(result.code == 0)
    let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("../../tools/man/strata.1")
    let manual = try String(contentsOf: page, encoding: .utf8).replacing("\\-", with: "-")
    let words = result.output.split(separator: "\n").filter { $0.hasPrefix("  -") }
      .flatMap { $0.split(whereSeparator: { " ,|[]<".contains($0) }) }
    for option in words where option.hasPrefix("-") {
      #expect(manual.contains(option), "\(verb) \(option)")
    }
  }
}

@Suite struct `The options of strata bitmap` {
  @Test(arguments: [
    "list", "add", "remove", "clear", "enable", "disable", "merge", "freeze", "thaw", "rotate",
  ])
  func `are all in the manual page`(verb: String) throws {
    let result = try runTool(ServedProcess.path(of: "strata"), "bitmap", verb, "--help")
    #expect(result.code == 0)
    let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("../../tools/man/strata.1")
    let manual = try String(contentsOf: page, encoding: .utf8).replacing("\\-", with: "-")
    #expect(manual.contains(".SS bitmap \(verb)\n"), "\(verb)")
    let words = result.output.split(separator: "\n").filter { $0.hasPrefix("  -") }
      .flatMap { $0.split(whereSeparator: { " ,|[]</".contains($0) }) }
    for option in words where option.hasPrefix("-") {
      #expect(manual.contains(option), "\(verb) \(option)")
    }
  }
}

@Suite struct `strata serve` {
  @Test func `becomes stratad and prints the line for QEMU`() throws {
    let fixture = try ServeFixture()
    let process = try ServedProcess(
      [try ServedProcess.path(of: "strata"), "serve"] + fixture.arguments + ["--ready-fd", "1"])
    try process.waitUntilReady()
    #expect(
      process.outputText
        == "-drive file=nbd:unix:\(fixture.socket),format=raw,if=virtio\nready\n")
    #expect(try process.status(of: "Name") == "stratad")
    #expect(process.stop() == 0)
  }

  @Test func `says how stratad's options are found`() throws {
    let result = try runTool(ServedProcess.path(of: "strata"), "serve", "--help")
    #expect(result.code == 0)
    #expect(result.output.contains("stratad --help"))
  }

  @Test func `says what is missing when there is no stratad`() throws {
    let folder = try TemporaryFolder()
    let lonely = folder.path("strata")
    try copyProgram("strata", to: lonely)
    let process = try ServedProcess([lonely, "serve", "x"], environment: ["PATH": folder.root])
    #expect(try process.waitForExit() == 1)
    #expect(process.errorText.contains("install it beside strata, or in a folder of PATH"))
  }
}

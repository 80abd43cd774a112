// SPDX-License-Identifier: Apache-2.0
//
// Which files an image may name as its base. Source: tools/decisions/0034; security.md 2.3
// (CVE-2011-3147), 4.2.

import BlockTypes
import Foundation
import LinuxIO
import Synchronization
import Testing

@testable import ImageTools

extension Workbench {
  /// A base of one MiB in `elsewhere`, and an overlay in `images` that names it as `name`.
  fileprivate func makeOverlay(_ name: String) throws {
    try prepare(
      "mkdir -p images/below elsewhere", "truncate -s 1M elsewhere/base images/base",
      "ln -sf ../elsewhere/base images/link", "ln -sfn ../elsewhere images/folder",
      "ln -sf ../base images/below/up")
    try writeHeader("images/top", backingFile: name, backingFormat: "raw")
  }

  fileprivate func open(_ allowed: [String] = [], access: ImageFile.Access = .readOnly) throws
    -> [OpenedLayer]
  {
    // Tools that other tests start hold our locks until they execute.
    var options = OpenChain.Options(takesLocks: false)
    options.allowed.backing = allowed
    return try OpenChain.open(
      path: path("images/top"), format: .qcow2, access: access, options: options)
  }
}

@Suite struct `The backing file that an image names` {
  @Test(arguments: ["base", "./base", "below/../base", "below/up"])
  func `is opened in the image's folder and below it`(_ name: String) throws {
    let bench = try Workbench()
    try bench.makeOverlay(name)
    #expect(try bench.open().count == 2)
    #expect(try bench.open(access: .readWrite).count == 2)
  }

  @Test(arguments: ["../elsewhere/base", "link", "folder/base", "/etc/passwd"])
  func `is not opened elsewhere, whatever links and dots lead there`(_ name: String) throws {
    let bench = try Workbench()
    try bench.makeOverlay(name)
    let error = #expect(throws: ImageFault.self) { try bench.open() }
    #expect(error?.kind == .refused)
    #expect(error?.path == bench.path("images/top"))
    #expect(error?.cause.contains("backing file '\(name)' is not opened") == true)
    #expect(error?.wayOut?.contains("--allow-backing '/") == true)
  }

  @Test(arguments: ["../elsewhere/base", "link", "folder/base"])
  func `is opened elsewhere when the user names it, its folder or any`(_ name: String) throws {
    let bench = try Workbench()
    try bench.makeOverlay(name)
    for allowed in ["elsewhere/base", "elsewhere", "images/folder", ".", "images/link"] {
      #expect(try bench.open([bench.path(allowed)]).count == 2, "\(allowed)")
    }
    #expect(try bench.open(["any"]).count == 2)
    // A name that only begins in the same way is another one.
    try bench.prepare("mkdir else elsewhere2")
    for other in ["else", "elsewhere2", "images"] {
      #expect(throws: ImageFault.self) { try bench.open([bench.path(other)]) }
    }
  }

  @Test func `is not even opened in the own folder with the word none`() throws {
    let bench = try Workbench()
    try bench.makeOverlay("base")
    let error = #expect(throws: ImageFault.self) { try bench.open(["none"]) }
    #expect(error?.cause.contains("is not allowed") == true)
    #expect(try bench.open(["none", bench.path("images/base")]).count == 2)
  }

  @Test(arguments: ["/proc/self/status", "/dev/null", "/sys/kernel/notes", "/proc/self/fd/0"])
  func `is nothing of the kernel's, also with the word any`(_ name: String) throws {
    let bench = try Workbench()
    try bench.makeOverlay(name)
    for allowed in [[], ["any"], ["/"], ["/proc", "/sys", "/dev"]] {
      #expect(throws: ImageFault.self) { try bench.open(allowed) }
    }
  }

  // Programs keep images in memory there.
  @Test func `may lie in a folder below /dev`() throws {
    let folder = "/dev/shm/strata-gate-\(ProcessInfo.processInfo.processIdentifier)"
    let bench = try Workbench()
    try bench.makeOverlay("base")
    try bench.prepare("cp -r images \(folder)")
    defer { do { try FileManager.default.removeItem(atPath: folder) } catch {} }
    #expect(try bench.strata("map \(folder)/top").exitCode == 0)
  }

  @Test func `may lie beside the top image for a layer further down`() throws {
    let bench = try Workbench()
    try bench.makeOverlay("below/middle")
    try bench.writeHeader("images/below/middle", backingFile: "../base", backingFormat: "raw")
    try bench.writeHeader("images/top", backingFile: "below/middle", backingFormat: "qcow2")
    #expect(try bench.open().count == 3)
    // By itself the middle one has no business there.
    let error = #expect(throws: ImageFault.self) {
      try OpenChain.open(
        path: bench.path("images/below/middle"), format: .qcow2, access: .readOnly)
    }
    #expect(error?.kind == .refused)
  }

  // The folder of a layer is the one that the layer was found in.
  @Test func `is none that somebody moves below the image's folder meanwhile`() throws {
    let bench = try Workbench()
    try bench.prepare(
      "mkdir -p images/real elsewhere", "truncate -s 1M images/real/ground elsewhere/ground",
      "ln -s ../elsewhere images/moving")
    try bench.writeHeader("images/real/base", backingFile: "ground", backingFormat: "raw")
    try bench.writeHeader("images/top", backingFile: "moving/base", backingFormat: "qcow2")
    let foreign = try ImageFile(opening: bench.path("elsewhere/ground"), access: .readOnly)
      .identity()
    let mover = Mover(bench.path("images/moving"), ["real", "../elsewhere"])
    defer { mover.stop() }
    var openedCount = 0
    for _ in 0..<4_000 where openedCount < 400 {
      let layers: [OpenedLayer]
      do { layers = try bench.open() } catch { continue }
      openedCount += 1
      #expect(layers.count == 3)
      for layer in layers {
        #expect(try layer.storage.file.identity() != .local(foreign), "a file of others is read")
      }
    }
    #expect(openedCount > 0)
  }

  @Test func `is named by create where it is not in the image's folder`() throws {
    let bench = try Workbench()
    try bench.makeOverlay("base")
    let create = "create -f qcow2 -F raw -b"
    let own = try bench.strata("\(create) below/../base images/new")
    #expect(own.exitCode == 0 && own.errors.isEmpty, "\(own.errors)")
    let quiet = try bench.strata("\(create) link -q images/new")
    #expect(quiet.exitCode == 0 && quiet.errors.isEmpty, "\(quiet.errors)")
    let foreign = try bench.strata("\(create) link images/new")
    #expect(foreign.exitCode == 0 && foreign.errors.split(separator: "\n").count == 1)
    let words = try #require(foreign.errors.split(separator: "say ").last)
    // What it says is what helps.
    let option = words.filter { $0 != "'" && $0 != "\n" }
    #expect(try bench.strata("map images/new").exitCode == 1)
    #expect(try bench.strata("map \(option) images/new").exitCode == 0, "\(option)")
  }

  @Test func `is judged by every verb, and each says what allows it`() throws {
    let bench = try Workbench()
    try bench.makeOverlay("../elsewhere/base")
    let verbs = [
      "map images/top", "info --backing-chain images/top",
      "convert -f qcow2 -O raw images/top new", "create -q -f qcow2 -b top -F qcow2 images/new",
    ]
    for verb in verbs {
      let refused = try bench.strata(verb)
      #expect(refused.exitCode == 1, "\(verb)")
      #expect(refused.errors.contains("--allow-backing"), "\(verb): \(refused.errors)")
      #expect(try bench.strata("\(verb) --allow-backing elsewhere").exitCode == 0, "\(verb)")
    }
    #expect(try bench.strata("info images/top").exitCode == 0)
    let missing = try bench.strata("map images/top --allow-backing nowhere")
    #expect(missing.errors.contains("--allow-backing"), "\(missing.errors)")
  }
}

/// Points a link to one place and another, again and again, on a thread of its own.
private final class Mover: Sendable {
  private let isStopped = Atomic(false)
  private let hasEnded = DispatchSemaphore(value: 0)

  init(_ link: String, _ places: [String]) {
    Thread.detachNewThread { [self] in
      while !isStopped.load(ordering: .relaxed) {
        for place in places where symlink(place, link + ".new") == 0 { rename(link + ".new", link) }
      }
      hasEnded.signal()
    }
  }

  func stop() {
    isStopped.store(true, ordering: .relaxed)
    hasEnded.wait()
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The life of a process that serves, step by step: open, listen, drop privileges, serve, tidy up.
// Everything is opened before the sandbox is entered; nothing is opened after.

import DataPlane
import ImageTools
import LinuxIO
import Sandbox

/// Serves exports in this process.
public struct Worker {
  /// The name that messages start with.
  public let programName: String
  private let config: ServerConfig

  public init(programName: String, config: ServerConfig) {
    self.programName = programName
    self.config = config
  }

  /// Runs until a signal ends it. The process must have one thread.
  ///
  /// - Returns: the exit status. Every message has been written to standard error.
  public func run() -> Int32 {
    do throws(ControlError) {
      Environment.openStandardStreams()
      Environment.ignoreStraySignals()
      Environment.raiseDescriptorLimit()
      try PlanCompiler.validate(config)
      let readiness = try Readiness(config)
      let passed = try ServiceManager.passedSockets()
      guard config.runsInBackground else {
        try serve(passed: passed, readiness)
        return 0
      }
      switch try Worker.enterBackground() {
      case .parent(let exitStatus): return exitStatus
      case .child(let parent):
        try serve(passed: passed, readiness.telling(parent: parent))
        return 0
      }
    } catch {
      Worker.report(error, programName)
      return 1
    }
  }

  private func serve(
    passed: [ServiceManager.PassedSocket], _ readiness: Readiness
  ) throws(ControlError) {
    // First, because what reads keys later is to inherit nothing.
    let loader = try RulesLoader(config)
    let rules = try loader.load()
    let remotes = config.exports.map { RemoteImages($0.remote) }
    defer { for remote in remotes { remote.close() } }
    let (plans, baseWatches) = try openExports(remotes)
    let identity = try WorkerIdentity.resolve(requested: config.user)
    // From here on a signal to stop waits until the loop asks for it, so files are tidied up.
    let signals = try Worker.naming("signals") { () throws(SystemError) in
      try Environment.stopSignals()
    }
    let listeners = try Listeners(config, passed: passed)
    defer { listeners.removeFiles() }
    let controlSocket = try Listeners.controlSocket(config.addresses, passed: passed)
    defer { _ = controlSocket?.removeFile() }
    let manager = try ServiceManager()
    let pidFile = try makePidFile()
    defer { pidFile?.remove() }

    do throws(SandboxError) {
      try Sandbox(identity: identity).enter()
    } catch {
      throw ControlError("privileges", error)
    }
    let server = try Server(config, plans)
    try server.serve(
      listeners: listeners.descriptors, controlSocket: controlSocket, signals: signals,
      rules: rules,
      reload: { [programName] in
        manager.sayReloading()
        defer { manager.sayReady() }
        do throws(ControlError) {
          return try loader.load()
        } catch {
          Worker.report(error, programName)
          throw error
        }
      },
      announce: { () throws(ControlError) in
        try readiness.announce(driveLines: driveLines(listeners))
        manager.sayReady()
      })
    manager.sayStopping()
    for watch in baseWatches { try watch.verify() }
  }

  /// What to tell QEMU, one line for each export.
  private func driveLines(_ listeners: Listeners) -> [String] {
    guard config.printsDrive else { return [] }
    return config.exports.enumerated().compactMap { index, export in
      listeners.driveLine(
        export: index == 0 ? nil : export.shownName,
        needsTLS: export.access.requiresTLS(config.tls))
    }
  }

  /// Opens all images. Their keys are read here, and wiped at the end.
  private func openExports(
    _ remotes: [RemoteImages]
  ) throws(ControlError) -> (plans: [ExportPlan], baseWatches: [BaseWatch]) {
    var plans: [ExportPlan] = []
    var baseWatches: [BaseWatch] = []
    var keys = KeyReader()
    for (export, remote) in zip(config.exports, remotes) {
      let layers = try openChain(export, remote, &keys)
      baseWatches.append(try BaseWatch(layers))
      plans.append(
        try PlanCompiler.compile(export, layers: layers, connectionsMax: config.connectionsMax))
    }
    return (plans, baseWatches)
  }

  private func openChain(
    _ export: ExportConfig, _ remote: RemoteImages, _ keys: inout KeyReader
  ) throws(ControlError) -> [OpenedLayer] {
    do throws(ImageFault) {
      var options = OpenChain.Options(
        detection: .topQcow2, snapshot: export.snapshot, remote: remote)
      options.allowed = export.allowed
      let ring = try keys.ring(export.keys)
      options.keys = ring
      options.keepsBitmaps = true
      let layers = try OpenChain.open(
        path: export.imagePath, format: export.format,
        access: export.isReadOnly ? .readOnly : .readWrite, options: options)
      try ring.requireUse(in: layers, mayBeIdle: export.keysAreCommon)
      return layers
    } catch {
      throw ControlError(error)
    }
  }

  private func makePidFile() throws(ControlError) -> PidFile? {
    guard let path = config.pidFilePath else { return nil }
    return try Worker.naming("pidfile \(path)") { () throws(SystemError) in
      try PidFile(creating: path)
    }
  }

  private static func enterBackground() throws(ControlError) -> Background {
    try naming("--fork") { () throws(SystemError) in try Background.enter() }
  }

  private static func naming<Result: ~Copyable>(
    _ subject: String, _ body: () throws(SystemError) -> Result
  ) throws(ControlError) -> Result {
    do throws(SystemError) {
      return try body()
    } catch {
      throw ControlError(subject, error)
    }
  }

  private static func report(_ error: ControlError, _ programName: String) {
    do throws(SystemError) {
      try TextOutput.standardError.writeLine("\(programName): \(error)")
    } catch {
      // Nobody listens; the exit status still tells.
    }
  }
}

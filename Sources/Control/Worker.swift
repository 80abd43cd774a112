// SPDX-License-Identifier: Apache-2.0
//
// The life of an export process, step by step: open, listen, drop privileges, serve, tidy up.
// Everything is opened before the sandbox is entered; nothing is opened after.

import DataPlane
import ImageTools
import LinuxIO
import Sandbox

/// Serves one export in this process.
public struct Worker {
  /// The name that messages start with.
  public let programName: String
  private let config: ExportConfig

  public init(programName: String, config: ExportConfig) {
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
      let passedCount = try ServiceManager.passedSocketCount()
      guard config.runsInBackground else {
        try serve(passedCount: passedCount, readiness)
        return 0
      }
      switch try Worker.enterBackground() {
      case .parent(let exitStatus): return exitStatus
      case .child(let parent):
        try serve(passedCount: passedCount, readiness.telling(parent: parent))
        return 0
      }
    } catch {
      report(error)
      return 1
    }
  }

  private func serve(passedCount: Int, _ readiness: Readiness) throws(ControlError) {
    let layers = try openChain()
    let baseWatch = try BaseWatch(layers)
    var plan = try PlanCompiler.compile(config, layers: layers)
    plan.tls = try TLSLoader.plan(config.tls)
    let identity = try WorkerIdentity.resolve(requested: config.user)
    // From here on a signal to stop waits until the loop asks for it, so files are tidied up.
    let stopSignals = try Worker.naming("signals") { () throws(SystemError) in
      try Environment.stopSignals()
    }
    let listeners = try Listeners(config, passedCount: passedCount)
    defer { listeners.removeFiles() }
    let controlSocket = try Listeners.controlSocket(config)
    defer { _ = controlSocket?.removeFile() }
    let manager = try ServiceManager()
    let pidFile = try makePidFile()
    defer { pidFile?.remove() }

    do throws(SandboxError) {
      try Sandbox(identity: identity).enter()
    } catch {
      throw ControlError("privileges", error)
    }
    try serve(plan, listeners, controlSocket, stopSignals: stopSignals) { () throws(ControlError) in
      try readiness.announce(
        driveLine: config.printsDrive ? listeners.driveLine(tls: config.tls.policy) : nil)
      manager.sayReady()
    }
    manager.sayStopping()
    try baseWatch.verify()
  }

  /// Starts the loop, calls `announce`, and returns when all is drained and durable.
  private func serve(
    _ plan: ExportPlan, _ listeners: Listeners, _ controlSocket: ListeningSocket?,
    stopSignals: Int32, announce: () throws(ControlError) -> Void
  ) throws(ControlError) {
    let outcome: ExportLoop.Outcome
    do {
      let commands = try Mailbox<ExportCommand>()
      var loop = try ExportLoop(
        plan: plan, listeners: listeners.descriptors, stopSignals: stopSignals, mailbox: commands)
      var service: ControlService?
      if let controlSocket { service = try ControlService(controlSocket, commands: commands) }
      do throws(ControlError) {
        try announce()
      } catch {
        service.take()?.stop()
        throw error
      }
      outcome = loop.run()
      service.take()?.stop()
    } catch let error as ControlError {
      throw error
    } catch {
      throw ControlError(config.imagePath, "\(error)")
    }
    switch outcome {
    case .drained: return
    case .abandoned:
      throw ControlError(
        config.imagePath, "stopped at once by a second signal; requests were left unanswered")
    case .failed(let reason): throw ControlError(config.imagePath, reason)
    }
  }

  private func openChain() throws(ControlError) -> [OpenedLayer] {
    do throws(ImageFault) {
      return try OpenChain.open(
        path: config.imagePath, format: config.format,
        access: config.isReadOnly ? .readOnly : .readWrite,
        options: OpenChain.Options(detection: .topQcow2))
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

  private func report(_ error: ControlError) {
    do throws(SystemError) {
      try TextOutput.standardError.writeLine("\(programName): \(error)")
    } catch {
      // Nobody listens; the exit status still tells.
    }
  }
}

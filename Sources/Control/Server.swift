// SPDX-License-Identifier: Apache-2.0
//
// The threads of a process that serves: one for each export, one for those who oversee, and the
// reception on the first. They begin after privileges are given up.

import BlockTypes
import DataPlane
import LinuxIO

/// A set of exports, their reception and their control socket.
struct Server {
  private let config: ServerConfig
  private let plans: [ExportPlan]

  init(_ config: ServerConfig, _ plans: [ExportPlan]) throws(ControlError) {
    self.config = config
    self.plans = plans
  }

  /// Starts the loops, calls `announce`, and returns when all is drained and durable.
  ///
  /// - Throws: also what an export failed with; the others are ended in order then.
  func serve(
    listeners: [Int32], controlSocket: ListeningSocket?, signals: Int32, rules: ReceptionRules,
    reload: @escaping () throws -> ReceptionRules, announce: () throws(ControlError) -> Void
  ) throws(ControlError) {
    let plan = ReceptionPlan(
      rules: rules, connectionsMax: config.connectionsMax,
      connectionsPerPeerMax: config.connectionsPerPeerMax,
      limits: RequestLimits(
        connectionsMax: config.connectionsMax, handshakeSecondsMax: config.handshakeSecondsMax),
      speaksOldstyle: config.speaksOldstyle, listsExports: config.listsExports)
    var threads = FixedPool<ExportThread>(capacity: plans.count)
    var stopOrders: [StopOrder] = []
    do {
      var desk = OversightDesk(reception: try Mailbox<ReceptionCommand>())
      let ended = try EndedCount()
      let attendance = try Attendance(exportCount: plans.count)
      var entrances: [Entrance] = []
      var loops = FixedPool<ExportLoop>(capacity: plans.count)
      for (index, plan) in plans.enumerated() {
        let commands = try Mailbox<ExportCommand>()
        let loop = try naming(index) { try ExportLoop(plan: plan, mailbox: commands) }
        entrances.append(loop.entrance)
        desk.exports.append((name: plan.name, mailbox: commands))
        guard loops.insert(loop) == index else { preconditionFailure("exports are out of order") }
      }
      stopOrders = entrances.map(\.stopOrder)
      var reception = try Reception(
        plan: plan, entrances: entrances, attendance: attendance, listeners: listeners,
        signals: signals, mailbox: desk.reception, ended: ended, reload: reload)
      for index in plans.indices {
        guard threads.insert(try ExportThread(loops.take(index), ended: ended)) == index else {
          preconditionFailure("exports are out of order")
        }
      }
      var service: ControlService?
      if let controlSocket { service = try ControlService(controlSocket, desk) }
      do throws(ControlError) {
        try announce()
      } catch {
        service.take()?.stop()
        throw error
      }
      reception.run()
      service.take()?.stop()
    } catch {
      for order in stopOrders { order.give(.drain) }
      _ = Server.join(&threads)
      throw error as? ControlError ?? ControlError(config.exports[0].imagePath, "\(error)")
    }
    try judge(Server.join(&threads))
  }

  private func naming(
    _ index: Int, _ body: () throws -> ExportLoop
  ) throws(ControlError) -> ExportLoop {
    do {
      return try body()
    } catch {
      throw ControlError(config.exports[index].imagePath, "\(error)")
    }
  }

  /// Says of bitmaps that they are left as in use.
  private static func warn(_ path: String, _ reason: String) {
    do throws(SystemError) {
      try TextOutput.standardError.writeLine(
        "stratad: \(path): its persistent bitmaps are left marked as in use: \(reason)")
    } catch {
      // Nobody listens; the image tells.
    }
  }

  private static func join(_ threads: inout FixedPool<ExportThread>) -> [ExportLoop.Outcome] {
    (0..<threads.capacity).filter { threads.isOccupied($0) }.map { threads.take($0).join() }
  }

  /// Throws when an export did not end in order; what became of the others is said, too.
  private func judge(_ outcomes: [ExportLoop.Outcome]) throws(ControlError) {
    var failures: [(path: String, reason: String)] = []
    for (index, outcome) in outcomes.enumerated() {
      let path = config.exports[index].imagePath
      switch outcome {
      case .drained: break
      case .drainedWithoutBitmaps(let reason): Server.warn(path, reason)
      case .abandoned:
        failures.append(
          (path, "stopped at once by a second signal; requests were left unanswered"))
      case .failed(let reason): failures.append((path, reason))
      }
    }
    guard let first = failures.first else { return }
    let others = failures.dropFirst().map { "; \($0.path): \($0.reason)" }.joined()
    throw ControlError(first.path, first.reason + others)
  }
}

// SPDX-License-Identifier: Apache-2.0
// TEMPORARY until DataPlane has it.
import DataPlane
import Glibc

public struct ExportLoop: ~Copyable {
  public enum Outcome {
    case drained, abandoned
    case failed(String)
  }
  let signals: Int32
  let plan: ExportPlan
  public init(plan: ExportPlan, listeners: [Int32], stopSignals: Int32) throws {
    signals = stopSignals
    self.plan = plan
  }
  public mutating func run() -> Outcome {
    var p = pollfd(fd: signals, events: Int16(POLLIN), revents: 0)
    _ = unsafe poll(&p, 1, -1)
    return .drained
  }
}

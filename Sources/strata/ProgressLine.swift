// SPDX-License-Identifier: Apache-2.0
//
// How far a verb is, for people and for programs. Writes to the standard streams.

import LinuxIO
import Synchronization

/// Percents on standard error, or a line of JSON for each on standard output. It never goes back,
/// although threads end their pieces in any order.
final class ProgressLine: Sendable {
  private let shown = Mutex<UInt64?>(nil)
  private let output: OutputFormat
  private let isShown: Bool

  /// - Parameter needsTerminal: whether percents are only for a person who may be looking.
  init(_ output: OutputFormat, needsTerminal: Bool = false) {
    self.output = output
    isShown = !needsTerminal || TextOutput.standardError.isTerminal
  }

  func show(_ done: UInt64, of all: UInt64) {
    guard isShown else { return }
    let percent = done >= all ? 100 : done / (all / 100 + 1)
    shown.withLock { shown in
      if let last = shown, last >= percent { return }
      shown = percent
      do throws(SystemError) {
        switch output {
        case .human: try TextOutput.standardError.write("\r\(percent) %")
        case .json:
          try TextOutput.standardOutput.writeLine(
            "{\"progress\":\(percent),\"offset\":\(done),\"total\":\(all)}")
        }
      } catch {}
    }
  }

  func end() {
    guard isShown, output == .human else { return }
    do throws(SystemError) { try TextOutput.standardError.write("\r      \r") } catch {}
  }
}

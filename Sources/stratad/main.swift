// SPDX-License-Identifier: Apache-2.0
//
// The export process. A synchronous main: privileges are dropped while there is one thread.

import ArgumentParser
import Control
import Glibc
import LinuxIO

/// Says something and ends. ArgumentParser's own way out would end with 64 for a wrong option.
private func end(_ text: String, on output: TextOutput, status: Int32) -> Never {
  // When nobody reads, the exit status still tells.
  do throws(SystemError) { try output.writeLine(text) } catch {}
  exit(status)
}

do {
  let config = try StratadCommand.config(Array(CommandLine.arguments.dropFirst()))
  exit(Worker(programName: "stratad", config: config).run())
} catch let error as ControlError {
  end("stratad: \(error)", on: .standardError, status: 2)
} catch {
  let text = StratadCommand.fullMessage(for: error)
  let isHelp = StratadCommand.exitCode(for: error) == .success
  end(text, on: isHelp ? .standardOutput : .standardError, status: isHelp ? 0 : 2)
}

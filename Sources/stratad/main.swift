// SPDX-License-Identifier: Apache-2.0
//
// The export process. A synchronous main: privileges are dropped while there is one thread.

import ArgumentParser
import Control
import Glibc
import LinuxIO

// ArgumentParser's own main() would leave with 64 on a wrong option; ours is 2 for usage.
do {
  let command = try StratadCommand.parse()
  let config = try command.config()
  exit(Worker(programName: "stratad", config: config).run())
} catch {
  let text = StratadCommand.fullMessage(for: error)
  let isHelp = StratadCommand.exitCode(for: error) == .success
  do throws(SystemError) {
    try (isHelp ? TextOutput.standardOutput : .standardError).writeLine(text)
  } catch {
    // Nobody reads; the exit status still tells.
  }
  exit(isHelp ? 0 : 2)
}

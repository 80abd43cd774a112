// SPDX-License-Identifier: Apache-2.0
//
// `strata status`: asks a running stratad what an export has done.

import ArgumentParser
import Control

struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show what an export of a running daemon has done.",
    discussion: ControlOptions.discussion)

  @OptionGroup var question: QuestionOptions

  @OptionGroup var choice: ExportChoice

  func run() throws { try question.ask(.status(export: choice.export), StatusText.text) }
}

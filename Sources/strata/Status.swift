// SPDX-License-Identifier: Apache-2.0
//
// `strata status`: asks a running stratad what it has done.

import ArgumentParser
import Control

struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show what a running daemon has done.", discussion: ControlOptions.discussion)

  @OptionGroup var question: QuestionOptions

  func run() throws { try question.ask(.status, StatusText.text) }
}

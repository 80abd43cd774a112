// SPDX-License-Identifier: Apache-2.0
//
// `strata exports`: asks a running stratad what it serves.

import ArgumentParser
import Control

struct Exports: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the exports of a running daemon.", discussion: ControlOptions.discussion)

  @OptionGroup var question: QuestionOptions

  func run() throws { try question.ask(.exports, ExportsText.text) }
}

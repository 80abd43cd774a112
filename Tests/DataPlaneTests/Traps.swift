// SPDX-License-Identifier: Apache-2.0
//
// What a child process that was to trap wrote before it died. This file performs no I/O.

import Testing

/// Whether the trap was the one that says `sentence`, and not a stranger.
func said(_ sentence: String, _ result: ExitTest.Result?) -> Bool {
  String(decoding: result?.standardErrorContent ?? [], as: UTF8.self).contains(sentence)
}

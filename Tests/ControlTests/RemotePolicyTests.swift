// SPDX-License-Identifier: Apache-2.0
//
// Which URIs an image may name. Source: tools/decisions/0017.

import Control
import NBDProtocol
import Testing

@Suite struct `A URI in an image` {
  private static let uri = "nbd://server/disk"

  @Test(arguments: [
    ([], false), ([uri], true), (["nbd://server:10809/disk"], true),
    (["nbd://server/%64isk"], true), (["nbd://server/disk2"], false), (["nbd://server/"], false),
    (["nbds://server/disk"], false), (["nbd://server:10810/disk"], false),
    (["nbd://other/disk", uri], true), (["any"], true), (["nbd://*/disk"], false),
  ])
  func `is allowed by the same URI, however it is written, and by no other`(
    allowed: [String], passes: Bool
  ) throws {
    var policy = RemotePolicy()
    policy.allowedBases = allowed
    #expect(try (policy.objection(to: NBDURI(Self.uri)) == nil) == passes)
  }

  @Test(arguments: ["tls-certificates=/etc", "tls-psk-file=/etc/shadow"])
  func `with files of this machine is allowed by itself only`(query: String) throws {
    let uri = "nbds://server/disk?\(query)"
    var policy = RemotePolicy()
    policy.allowedBases = ["any", "nbds://server/disk"]
    #expect(try policy.objection(to: NBDURI(uri)) != nil)
    policy.allowedBases = [uri]
    #expect(try policy.objection(to: NBDURI(uri)) == nil)
  }
}

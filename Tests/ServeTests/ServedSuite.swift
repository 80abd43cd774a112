// SPDX-License-Identifier: Apache-2.0
//
// What suites have in common that are hard on one server and look whether it bears it.

import TestSupport
import Testing

/// A suite with a server of its own, which offers 1 MiB of zeroes as "disk".
protocol ServedSuite {
  var fixture: ServeFixture { get }
  var server: ServedProcess { get }
}

extension ServedSuite {
  /// A client that has agreed on fixed newstyle.
  func greeted() throws -> WireClient {
    let client = try WireClient(path: fixture.socket)
    try client.greet()
    return client
  }

  /// The server lives, its image is as it was, and a good client gets in.
  func expectHealth() throws {
    #expect(server.isAlive)
    #expect(server.errorText == "")
    let client = try WireClient.entered(path: fixture.socket)
    #expect(try client.read(0, 4_096).data == [UInt8](repeating: 0, count: 4_096))
    try client.disconnect()
  }
}

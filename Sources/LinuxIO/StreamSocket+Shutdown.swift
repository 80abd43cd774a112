// SPDX-License-Identifier: Apache-2.0
//
// Ending a connection before its socket can be closed. Source: shutdown(2).

import Glibc

extension StreamSocket {
  /// Ends both directions: the peer reads what was sent and then the end. One that has gone before
  /// is no failure.
  public func shutDown() { _ = shutdown(descriptor, Int32(SHUT_RDWR)) }
}

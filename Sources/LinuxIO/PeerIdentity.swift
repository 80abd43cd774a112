// SPDX-License-Identifier: Apache-2.0
//
// Who is at the other end of a connected socket. Source: unix(7), "SO_PEERCRED"; getpeername(2).

import CLinux
import Glibc

/// The other end of a connection, as far as the kernel knows it.
public enum PeerIdentity: Hashable, Sendable {
  /// A process of this machine, as it was when it connected. The process may have ended since, and
  /// 0 stands for one that this process's namespace has no number for.
  case unix(userID: UInt32, groupID: UInt32, processID: Int32)
  case tcp(SocketAddress)
  /// A virtual machine of this host, or its host (vsock(7)).
  case vsock(contextID: UInt32, port: UInt32)
  /// The other end was gone before it could be asked.
  case unknown

  /// Asks the kernel, by up to three system calls.
  public init(of descriptor: Int32) {
    if let address = SocketAddress(connectedTo: descriptor) {
      self = .tcp(address)
      return
    }
    var contextID: UInt32 = 0
    var port: UInt32 = 0
    // SAFETY: both variables outlive the call.
    if unsafe clinux_peer_vsock(descriptor, &contextID, &port) == 0 {
      self = .vsock(contextID: contextID, port: port)
      return
    }
    var userID: UInt32 = 0
    var groupID: UInt32 = 0
    var processID: Int32 = 0
    // SAFETY: the three variables outlive the call.
    let result = unsafe clinux_peer_credentials(descriptor, &userID, &groupID, &processID)
    // A socket that is not of UNIX has no user, which the kernel tells by the highest number.
    self =
      result == 0 && userID != .max
      ? .unix(userID: userID, groupID: groupID, processID: processID) : .unknown
  }
}

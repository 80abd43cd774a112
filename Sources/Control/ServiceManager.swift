// SPDX-License-Identifier: Apache-2.0
//
// What a service manager gives a process and wants to hear. Source: sd_listen_fds(3),
// sd_notify(3).

import LinuxIO

/// The service manager of this process, if it has one.
struct ServiceManager: ~Copyable {
  /// SD_LISTEN_FDS_START.
  static let firstDescriptor: Int32 = 3
  /// Sockets that one export may be passed.
  static let passedSocketsMax = 64

  private let socket: NotifySocket?

  /// Connects to NOTIFY_SOCKET, when that is set.
  init() throws(ControlError) {
    guard let address = Environment.variable("NOTIFY_SOCKET"), !address.isEmpty else {
      socket = nil
      return
    }
    do throws(SystemError) {
      socket = try NotifySocket(address: address)
    } catch {
      throw ControlError("NOTIFY_SOCKET \(address)", error)
    }
  }

  func sayReady() {
    socket?.send("READY=1\nMAINPID=\(Environment.processID)\n")
  }

  func sayStopping() {
    socket?.send("STOPPING=1\n")
  }

  /// How many sockets were passed to this very process; to be asked before it forks.
  static func passedSocketCount() throws(ControlError) -> Int {
    guard let text = Environment.variable("LISTEN_PID"),
      Int32(text) == Environment.processID
    else { return 0 }
    guard let count = Environment.variable("LISTEN_FDS").flatMap({ Int($0) }),
      0...passedSocketsMax ~= count
    else {
      throw ControlError("LISTEN_FDS", "the value is no number in 0...\(passedSocketsMax)")
    }
    return count
  }
}

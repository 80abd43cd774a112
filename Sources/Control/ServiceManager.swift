// SPDX-License-Identifier: Apache-2.0
//
// What a service manager gives a process and wants to hear. Source: sd_listen_fds(3),
// sd_notify(3).

import LinuxIO

/// The service manager of this process, if it has one.
final class ServiceManager {
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

  /// To be followed by `sayReady` (sd_notify(3), "RELOADING=1").
  func sayReloading() {
    socket?.send("RELOADING=1\nMONOTONIC_USEC=\(MonotonicClock.nanoseconds / 1_000)\n")
  }

  func sayStopping() {
    socket?.send("STOPPING=1\n")
  }

  /// A socket that was passed.
  struct PassedSocket: Equatable {
    let descriptor: Int32
    /// Its name is "control": it is for those who oversee, and the others are for clients.
    let isForControl: Bool
  }

  /// The sockets that were passed to this very process; to be asked before it forks.
  static func passedSockets() throws(ControlError) -> [PassedSocket] {
    guard let text = Environment.variable("LISTEN_PID"),
      Int32(text) == Environment.processID
    else { return [] }
    guard let count = Environment.variable("LISTEN_FDS").flatMap({ Int($0) }),
      0...passedSocketsMax ~= count
    else {
      throw ControlError("LISTEN_FDS", "the value is no number in 0...\(passedSocketsMax)")
    }
    let names = Environment.variable("LISTEN_FDNAMES")?
      .split(separator: ":", omittingEmptySubsequences: false)
    if let names, names.count != count {
      throw ControlError(
        "LISTEN_FDNAMES", "there are \(names.count) names for \(count) sockets")
    }
    return (0..<count).map { index in
      PassedSocket(
        descriptor: firstDescriptor + Int32(index), isForControl: names?[index] == "control")
    }
  }
}

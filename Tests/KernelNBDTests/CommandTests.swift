// SPDX-License-Identifier: Apache-2.0
//
// `strata attach` and `strata detach` on the command line, as far as no device is needed. What they
// do to devices is tested in a guest (tools/guest/attach.py). This file starts programs, and asks
// this machine's kernel for its netlink families.

import Foundation
import LinuxIO
import TestSupport
import Testing

@testable import KernelNBD

/// What `strata` says when it fails.
private func failure(_ arguments: String...) throws -> String {
  let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
  do {
    _ = try runTool(path, arguments)
    return "it did not fail"
  } catch {
    return "\(error)"
  }
}

private let uri = "nbd+unix:///?socket=/nonexistent/socket"

/// Whether this machine has the kernel's driver; the tests never touch its devices.
private let hasDriver = access("/sys/module/nbd", F_OK) == 0 || access("/sys/block/nbd0", F_OK) == 0

@Suite struct `The command line of attach` {
  @Test(arguments: [
    (["--connections", "0"], "from 1 to 64"), (["--connections", "65"], "from 1 to 64"),
    (["--timeout", "0"], "--timeout is a number of seconds"),
    (["--dead-connection-timeout", "604801"], "--dead-connection-timeout is a number"),
    (["--identifier", ""], "--identifier has 1 to 255 bytes"),
    (["--identifier", String(repeating: "x", count: 256)], "--identifier has 1 to 255 bytes"),
    (["--identifier", "a\nb"], "no control characters"),
    (["--reconfigure"], "--reconfigure needs the name"),
    (["--ioctl", "--identifier", "x"], "need netlink"),
    (["--block-size", "many"], "is not a size"),
    (["/dev/sda"], "a device is called /dev/nbd0"), (["/dev/nbd0p1"], "name the whole disk"),
    (["--reconfigure", "--read-only", "/dev/nbd0"], "does not change"),
  ])
  func `refuses what cannot be, before it asks the kernel`(
    _ arguments: [String], _ sentence: String
  ) throws {
    let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
    let error = try #require(throws: (any Error).self) {
      try runTool(path, ["attach", uri] + arguments)
    }
    #expect("\(error)".contains(sentence))
  }

  @Test(.enabled(if: !hasDriver, "this machine has the nbd driver"))
  func `says how the driver is loaded`() throws {
    for arguments in [[], ["--ioctl"], ["--proxy"], ["/dev/nbd0"]] {
      let path = URL(fileURLWithPath: try daemonPath()).deletingLastPathComponent().path + "/strata"
      let error = try #require(throws: (any Error).self) {
        try runTool(path, ["attach", uri] + arguments)
      }
      #expect("\(error)".contains("the kernel has no nbd driver; load it with 'modprobe nbd'"))
    }
    #expect(try failure("detach", "/dev/nbd0").contains("/dev/nbd0: the kernel has no nbd driver"))
  }
}

@Suite struct `This machine's kernel` {
  @Test func `understands the question for a family, and its answer is understood`() throws {
    let socket = try NetlinkSocket()
    let message = NetlinkFamily.question("nlctrl", sequence: 9)
    try socket.send(message.bytes)
    var answers: [NetlinkAnswer] = []
    while true {
      answers += try NetlinkAnswer.all(in: socket.receive(milliseconds: 10_000))
      if case .end = answers.last { break }
    }
    #expect(answers.last == .end(sequence: 9, errno: 0, text: nil))
    #expect(try NetlinkFamily(answers).type == NetlinkFamily.controlType)
  }

  @Test func `refuses a family that it does not have`() throws {
    let socket = try NetlinkSocket()
    try socket.send(NetlinkFamily.question("no such", sequence: 3).bytes)
    let answers = try NetlinkAnswer.all(in: socket.receive(milliseconds: 10_000))
    guard case .end(3, ENOENT, _) = answers.last else {
      Issue.record("\(answers)")
      return
    }
  }

  @Test func `keeps a receive waiting no longer than it is told to`() throws {
    let socket = try NetlinkSocket()
    let error = try #require(throws: SystemError.self) { try socket.receive(milliseconds: 10) }
    #expect(error.errno == ETIMEDOUT)
  }
}

@Suite struct `A device file` {
  @Test(arguments: ["/dev/null", "/etc/passwd", "/"])
  func `is a block device and nothing else`(_ path: String) throws {
    let error = try #require(throws: SystemError.self) {
      _ = try DeviceFile(opening: path, exclusively: false)
    }
    #expect(error.errno == ENOTBLK)
  }
}

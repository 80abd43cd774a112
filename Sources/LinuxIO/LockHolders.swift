// SPDX-License-Identifier: Apache-2.0
//
// Who locks a file, found in /proc/PID/fdinfo. Only for the sentence that says why an image cannot
// be locked: processes that may not be looked at are left out. Source: proc(5).

import CLinux
import Glibc

enum LockHolders {
  /// Holders that a message names at most.
  private static let namesMax = 4

  /// "12 (qemu-nbd), 15 (stratad)" for the other processes that lock `file`; empty if none is seen.
  static func names(locking file: borrowing ImageFile) -> String {
    var status = stat()
    guard unsafe fstat(file.descriptor, &status) == 0 else { return "" }
    // A line reads "lock: 1: OFDLCK ADVISORY READ -1 08:01:1234 100 100".
    let mark = ":\(status.st_ino) "
    var holders: [String] = []
    for process in entries(of: "/proc") {
      guard holders.count < namesMax, let number = Int32(process), number != getpid() else {
        continue
      }
      let folder = "/proc/\(process)/fdinfo"
      let locks = entries(of: folder).contains { entry in
        text(of: "\(folder)/\(entry)").split(separator: "\n").contains {
          $0.hasPrefix("lock:") && $0.contains("OFDLCK") && $0.contains(mark)
        }
      }
      if locks {
        let name = text(of: "/proc/\(process)/comm").prefix { $0 != "\n" }
        holders.append("\(process) (\(name))")
      }
    }
    return holders.joined(separator: ", ")
  }

  /// Names in a folder; none when it cannot be read.
  private static func entries(of folder: String) -> [String] {
    guard let stream = unsafe opendir(folder) else { return [] }
    var names: [String] = []
    while let entry = unsafe readdir(stream) {
      // SAFETY: the kernel ends `d_name` with a NUL inside the entry, which lives until the next
      // call on this stream.
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) {
          unsafe String(cString: $0)
        }
      }
      names.append(name)
    }
    unsafe closedir(stream)
    return names
  }

  /// The start of a small text file; empty when it cannot be read.
  private static func text(of path: String) -> String {
    let descriptor = unsafe clinux_open(path, O_RDONLY | O_CLOEXEC, 0)
    guard descriptor >= 0 else { return "" }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 4096)
    // SAFETY: the buffer has as many bytes as the call may write.
    let count = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe Glibc.read(descriptor, buffer.baseAddress, buffer.count)
    }
    return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
  }
}

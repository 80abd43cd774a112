// SPDX-License-Identifier: Apache-2.0
//
// Replaces this process by another program of the product. Source: execve(2), proc(5).

import Glibc

/// Runs programs that are installed beside this one.
public enum ProgramLauncher {
  /// Becomes `name`: from the folder of this program's file, else from PATH.
  ///
  /// Returns only by throwing: why the last place that was tried did not work.
  public static func become(_ name: String, arguments: [String]) throws(SystemError) -> Never {
    if let folder = programFolder() { execute("\(folder)/\(name)", name, arguments) }
    execute(name, name, arguments)
    throw SystemError(errno: errno, call: "exec")
  }

  /// Returns when the program could not be run; a name without a slash is looked for in PATH.
  private static func execute(_ path: String, _ name: String, _ arguments: [String]) {
    // SAFETY: strdup's copies live until they are freed; the array ends with a null pointer.
    var words = unsafe ([name] + arguments).map { unsafe strdup($0) }
    unsafe words.append(nil)
    defer {
      for index in unsafe words.indices { unsafe free(words[index]) }
    }
    _ = unsafe execvp(path, words)
  }

  private static func programFolder() -> String? {
    var bytes = [CChar](repeating: 0, count: Int(PATH_MAX))
    // SAFETY: the kernel writes at most `bytes.count` bytes.
    let count = unsafe readlink("/proc/self/exe", &bytes, bytes.count)
    guard count > 0 else { return nil }
    let path = String(decoding: bytes[..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
    return path.lastIndex(of: "/").map { String(path[..<$0]) }
  }
}

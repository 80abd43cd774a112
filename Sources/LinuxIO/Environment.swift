// SPDX-License-Identifier: Apache-2.0
//
// What a process has from its parent: variables, standard streams, limits, signals.
// Source: environ(7), getrlimit(2), signal(7), daemon(7).

import CLinux
import Glibc

/// Facts and settings of this process.
public enum Environment {
  /// The value of an environment variable.
  public static func variable(_ name: String) -> String? {
    // SAFETY: nothing changes the environment while this program runs.
    unsafe getenv(name).map { unsafe String(cString: $0) }
  }

  public static var processID: Int32 { getpid() }

  /// The folder that relative paths start from.
  public static func currentFolder() throws(SystemError) -> String {
    // SAFETY: with a null buffer the C library allocates the text, which is freed below.
    guard let text = unsafe getcwd(nil, 0) else {
      throw SystemError(errno: errno, call: "getcwd")
    }
    defer { unsafe free(text) }
    return unsafe String(cString: text)
  }

  /// Makes sure that descriptors 0, 1 and 2 are open, so that no image ever becomes one of them.
  public static func openStandardStreams() {
    // SAFETY: the path is a literal.
    for descriptor in Int32(0)...2 where fcntl(descriptor, F_GETFD) < 0 {
      _ = unsafe clinux_open("/dev/null", O_RDWR, 0)
    }
  }

  /// Points the standard streams at nothing: a process in the background has no terminal.
  public static func closeStandardStreams() throws(SystemError) {
    // SAFETY: the path is a literal.
    let null = try SystemError.check(
      unsafe clinux_open("/dev/null", O_RDWR | O_CLOEXEC, 0), "open /dev/null")
    defer { if null > 2 { close(null) } }
    for descriptor in Int32(0)...2 where dup2(null, descriptor) < 0 {
      throw SystemError(errno: errno, call: "dup2")
    }
  }

  /// A client that goes away makes a write fail; it must not end the process. Nor must signals that
  /// mean nothing here, and whose default is to end it.
  public static func ignoreStraySignals() {
    for number in [SIGPIPE, SIGUSR1, SIGUSR2] { signal(number, SIG_IGN) }
  }

  /// Allows as many descriptors as the hard limit does: a chain may have hundreds of layers.
  public static func raiseDescriptorLimit() {
    var limit = rlimit()
    // SAFETY: `limit` outlives the calls.
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
    limit.rlim_cur = limit.rlim_max
    // SAFETY: as above. A refusal leaves the old limit, which is enough for most.
    _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  }

  /// A descriptor that reports SIGTERM and SIGINT, which then no longer end the process.
  public static func stopSignals() throws(SystemError) -> Int32 {
    let signals = [SIGTERM, SIGINT, SIGHUP]
    // SAFETY: the array outlives the call.
    return try SystemError.check(unsafe clinux_signalfd(signals, Int32(signals.count)), "signalfd")
  }
}

extension Environment {
  /// Ends the process as the signal does by itself, so that whoever waits for it is told the truth.
  public static func end(by number: Int32) -> Never {
    signal(number, SIG_DFL)
    var signals = sigset_t()
    // SAFETY: the set outlives the calls.
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, number)
    unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
    raise(number)
    _exit(128 + number)
  }

  /// Makes this process one that disks may depend on: it gets memory without waiting for dirty
  /// pages to be written, and its own pages stay where they are.
  ///
  /// Where the kernel is too old or the process may not, it stays as it is: a wish, not a need.
  public static func becomeDiskServer() {
    _ = clinux_set_io_flusher()
    _ = clinux_lock_memory()
  }

  /// Keeps what this process has in memory out of core files, and from other processes of the same
  /// user: it is going to hold keys.
  public static func guardMemory() throws(SystemError) {
    _ = try SystemError.check(clinux_set_dumpable(0), "PR_SET_DUMPABLE")
  }

  /// The time that this thread has computed.
  public static var computedNanoseconds: UInt64 {
    var time = timespec()
    // SAFETY: the kernel writes one value.
    guard unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0 else { return 0 }
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  /// Makes the root the current folder: a process in the background keeps no other one busy.
  public static func leaveFolder() throws(SystemError) {
    // SAFETY: the path is a literal.
    guard unsafe chdir("/") == 0 else { throw SystemError(errno: errno, call: "chdir") }
  }

  /// Whether a file, folder or device can be seen at `path`.
  public static func isThere(_ path: String) -> Bool {
    // SAFETY: the path outlives the call.
    unsafe access(path, F_OK) == 0
  }

  /// Bytes of one page of memory.
  public static var pageByteCount: Int { sysconf(Int32(_SC_PAGESIZE)) }
}

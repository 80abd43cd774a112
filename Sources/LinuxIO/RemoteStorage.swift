// SPDX-License-Identifier: Apache-2.0
//
// Storage of a layer that is no file of this machine, as those see it who use layers: an NBD
// export today. Who talks to it lies above and is handed in; this file performs no I/O.

import BlockTypes
import Glibc

/// One operation on a remote storage.
public enum RemoteOperation: Sendable {
  /// Answered with the bytes of the range as far as the storage has them. Fewer than that is a
  /// short read, which is asked for on.
  case read(ByteRange)
  /// All of the bytes; `isDurable` asks for them to be on stable storage at the answer.
  case write(offset: UInt64, bytes: [UInt8], isDurable: Bool)
  /// Makes durable what was answered before.
  case flush
  /// The bytes are not needed any more; what they read as is undefined afterwards.
  case trim(ByteRange)
  /// The bytes read as zeroes afterwards. `keepsSpace`: and own their space; `isFast`: quickly, or
  /// not at all.
  case zero(ByteRange, keepsSpace: Bool, isFast: Bool)
  /// Answered with the status of the first bytes of the range.
  case status(ByteRange)
  /// The storage has this many bytes afterwards, new ones of zero. Where it is growable.
  case resize(to: UInt64)
  /// Takes space for the range and changes none of its bytes. Where it is growable.
  case provision(ByteRange)
}

/// What a remote storage did.
public enum RemoteAnswer: Hashable, Sendable {
  case done
  /// Only so many bytes of a write, at least 1, from its start on: a short write.
  case part(byteCount: Int)
  case bytes([UInt8])
  case run(StatusRun)
}

/// Why a remote storage did not do an operation.
public struct RemoteFault: Error, Hashable, Sendable {
  /// As a system call would fail with it.
  public let errno: Int32
  /// One sentence.
  public let text: String

  public init(errno: Int32, _ text: String) {
    self.errno = errno
    self.text = text
  }

  /// Nobody has answered in time. As far as the storage knows nothing is lost, and a later attempt
  /// may succeed.
  public static func unanswered(_ text: String) -> RemoteFault {
    RemoteFault(errno: ETIMEDOUT, text)
  }

  /// The storage has no such operation.
  public static func unsupported(_ text: String) -> RemoteFault {
    RemoteFault(errno: EOPNOTSUPP, text)
  }

  /// The range is not made of the storage's blocks, or passes its end.
  public static func outOfPlace(_ text: String) -> RemoteFault { RemoteFault(errno: EINVAL, text) }

  public static func readOnly(_ text: String) -> RemoteFault { RemoteFault(errno: EROFS, text) }

  public static func failed(_ text: String) -> RemoteFault { RemoteFault(errno: EIO, text) }

  /// As an error of the calls on files.
  var systemError: SystemError { SystemError(errno: errno, call: text) }
}

/// Storage behind a layer that somebody else keeps. Any thread may call it.
///
/// It may be used before `begin`, when the process has one thread: then `run` does all the work on
/// the thread of its caller.
public protocol RemoteStorage: AnyObject, Sendable {
  /// Two storages with the same identity are the same.
  var identity: String { get }
  /// A multiple of `blockByteCount`; only `resize` changes it.
  var byteCount: UInt64 { get }
  /// Whether it has a length that can be changed, as a regular file has.
  var isGrowable: Bool { get }
  /// Writes and zeroes begin and end at multiples of this, a power of two; reads need not.
  var blockByteCount: UInt64 { get }
  /// Whether `status` can be answered.
  var tellsStatus: Bool { get }

  /// Starts an operation. `completion` is called once, on any thread, perhaps before this returns.
  ///
  /// Before `begin` it is not called until somebody calls `run`.
  func start(
    _ operation: RemoteOperation,
    completion: @escaping @Sendable (Result<RemoteAnswer, RemoteFault>) -> Void)

  /// Does an operation and waits for its end. Writes need not be whole blocks here.
  func run(_ operation: RemoteOperation) throws(RemoteFault) -> RemoteAnswer

  /// From now on operations go on by themselves: starts a thread.
  func begin() throws(SystemError)

  /// The process stops: a storage that is only read is not waited for much longer.
  func hurry()
}

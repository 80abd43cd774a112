// SPDX-License-Identifier: Apache-2.0
//
// The operations of a disk queue on storages that are no files of this machine. They are copied
// and may allocate: their way is long anyhow.

import BlockTypes
import Glibc

extension DiskQueue {
  /// Registers a remote storage, which goes on by itself from now on, and returns its index.
  public mutating func addRemote(_ storage: LayerFile) throws(SystemError) -> Int {
    guard let remote = storage.file.remote else { preconditionFailure("a file is not remote") }
    if remoteCompletions == nil { remoteCompletions = try RemoteCompletions() }
    try remote.begin()
    return add(storage, direct: false, byteCount: remote.byteCount)
  }

  /// The descriptor that becomes readable when remote operations have ended; nil when all storages
  /// are local.
  public var remoteEventDescriptor: Int32? { remoteCompletions?.bell.descriptor }

  /// Takes note of that. The completions are taken by `nextCompletion`.
  public func takeRemoteEvent() { remoteCompletions?.bell.take() }

  /// The process stops: storages that are only read are not waited for much longer.
  public func hurryRemotes() {
    for file in files { file.storage.file.remote?.hurry() }
  }

  /// Gives operation `index` to the storage that it is for.
  @inline(never)
  mutating func prepareRemote(_ index: Int) {
    guard let remote = files[Int(operations[index].file)].storage.file.remote,
      let completions = remoteCompletions
    else { preconditionFailure("a file without a descriptor is not remote") }
    remoteInFlightCount += 1
    let operation = operations[index]
    remote.start(remoteOperation(index)) { result in
      completions.add(index, DiskQueue.value(of: result, for: operation))
    }
  }

  /// Does operation `index` on a remote storage and waits for it: a byte count or -errno.
  @inline(never)
  mutating func performRemoteNow(_ index: Int) -> Int {
    guard let remote = files[Int(operations[index].file)].storage.file.remote else {
      preconditionFailure("a file without a descriptor is not remote")
    }
    let result: Result<RemoteAnswer, RemoteFault>
    do throws(RemoteFault) {
      result = .success(try remote.run(remoteOperation(index)))
    } catch {
      result = .failure(error)
    }
    return DiskQueue.value(of: result, for: operations[index])
  }

  private func remoteOperation(_ index: Int) -> RemoteOperation {
    let operation = operations[index]
    switch operation.kind {
    case .flush: return .flush
    case .read:
      return .read(
        ByteRange(
          start: operation.offset + UInt64(operation.doneByteCount),
          end: operation.offset + UInt64(operation.byteCount)))
    case .write:
      var bytes: [UInt8] = []
      bytes.reserveCapacity(operation.byteCount - operation.doneByteCount)
      var skip = operation.doneByteCount
      for number in 0..<Int(operation.pieceCount) {
        let piece = operation.pieces[number]
        let skipped = min(skip, piece.byteCount)
        piece.buffer.append(piece.start + skipped, piece.byteCount - skipped, to: &bytes)
        skip -= skipped
      }
      return .write(
        offset: operation.offset + UInt64(operation.doneByteCount), bytes: bytes,
        isDurable: operation.isDurable)
    }
  }

  /// Puts what was read where it belongs, and says how many bytes were done. The request holds its
  /// buffer until the completion has been reported, on whatever thread this runs.
  private static func value(
    of result: Result<RemoteAnswer, RemoteFault>, for operation: Operation
  ) -> Int {
    switch result {
    case .failure(let fault): return -Int(fault.errno)
    case .success(.bytes(let bytes)):
      let piece = operation.pieces[0]
      precondition(
        bytes.count <= operation.byteCount - operation.doneByteCount,
        "a read brought more than was asked for")
      piece.buffer.copy(piece.start + operation.doneByteCount, from: bytes)
      return bytes.count
    case .success(.part(let byteCount)): return byteCount
    case .success: return operation.byteCount - operation.doneByteCount
    }
  }

  /// The next result of a remote operation.
  @inline(never)
  mutating func nextRemoteResult() -> (Int, Int)? {
    guard let result = remoteCompletions?.take() else { return nil }
    remoteInFlightCount -= 1
    return (result.index, result.value)
  }
}

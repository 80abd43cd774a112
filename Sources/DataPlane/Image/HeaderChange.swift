// SPDX-License-Identifier: Apache-2.0
//
// Changing the header of the active layer while it is served: all changes go through here, so that
// what we do not know stays as it is. Spec: qcow2.rst, "Header".

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Changes the header at once, durably. It blocks the loop for some small writes; it is rare.
  ///
  /// What the new header names has to be durable before.
  mutating func changeHeader(_ change: (inout Header) -> Void) -> BlockErrno {
    let byteCount = Int(layers[0].geometry.clusterByteCount)
    guard disks.hasRoom else { return .noMemory }
    guard let cluster = buffers.acquire(byteCount: byteCount) else { return .noMemory }
    defer { buffers.release(cluster) }
    let failure = disks.readNow(
      file: layers[0].file, at: 0, DiskQueue.Piece(cluster, 0, byteCount))
    if failure != 0 { return BlockErrno(systemErrno: failure) }
    var old: [UInt8] = []
    cluster.withSpan(0, byteCount) { span in
      old = (0..<byteCount).map { span.loadByte(at: $0) }
    }
    let rewrite: HeaderRewrite
    do throws(ImageError) {
      var header = try Header(decoding: old, fileByteCount: Header.fileByteCountMax)
      change(&header)
      rewrite = try HeaderRewrite(of: old, to: header)
    } catch {
      return .io
    }
    for stage in rewrite.stages {
      let failure = writeHeader(stage, over: old, cluster)
      if failure != .none { return failure }
      old = stage
    }
    return .none
  }

  /// Writes the pages in which `stage` differs from `old`, and makes them durable. A write that
  /// fails leaves either there; `old` is put back then, for nobody takes over what `stage` names.
  private mutating func writeHeader(
    _ stage: [UInt8], over old: [UInt8], _ cluster: IOBuffer
  ) -> BlockErrno {
    let failure = writeBlocks(of: stage, differingFrom: old, cluster)
    if failure != 0 {
      let isBack = writeBlocks(of: old, differingFrom: stage, cluster) == 0
      if !isBack || synchronizeHeader() != 0 { lostWrites = true }
      return BlockErrno(systemErrno: failure)
    }
    let syncFailure = synchronizeHeader()
    if syncFailure != 0 { lostWrites = true }  // what the header says is unknown now
    return BlockErrno(systemErrno: syncFailure)
  }

  /// Returns 0 or the errno of the first block that cannot be written.
  private mutating func writeBlocks(
    of stage: [UInt8], differingFrom old: [UInt8], _ cluster: IOBuffer
  ) -> Int32 {
    let pageByteCount = layers[0].geometry.pageByteCount
    for range in HeaderRewrite.changedBlocks(from: old, to: stage, blockByteCount: pageByteCount) {
      cluster.withMutableSpan(range.lowerBound, range.count) { span in
        for index in 0..<range.count {
          span.storeBigEndian(stage[range.lowerBound + index], at: index)
        }
      }
      let failure = disks.writeNow(
        file: layers[0].file, at: UInt64(range.lowerBound),
        DiskQueue.Piece(cluster, range.lowerBound, range.count))
      if failure != 0 { return failure }
    }
    return 0
  }

  private mutating func synchronizeHeader() -> Int32 {
    do throws(SystemError) {
      try storages[0].file.synchronize()
    } catch {
      return error.errno
    }
    return 0
  }
}

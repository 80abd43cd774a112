// SPDX-License-Identifier: Apache-2.0
//
// Data that is encrypted on the disk: decrypted where it was read to, once all of it is there, and
// encrypted on its way to the disk into memory of its own, since whoever writes may need his bytes
// again. The number of a sector is its offset in the file.

import BlockTypes
import Glibc

extension DiskQueue {
  /// Registers what encrypts data and returns its number for reads and writes.
  public mutating func add(_ cipher: any SectorCipher) -> Int32 {
    ciphers.append(cipher)
    return Int32(ciphers.count - 1)
  }

  /// Queues a write of data as `queueWrite` does, encrypted if `cipher` is not -1.
  ///
  /// - Returns: false when there is no memory for that; then nothing is queued.
  public mutating func queueWrite(
    file: Int, at offset: UInt64, from pieces: [3 of Piece], isDurable: Bool, cipher: Int32,
    tag: UInt64
  ) -> Bool {
    guard cipher >= 0 else {
      queueWrite(file: file, at: offset, from: pieces, isDurable: isDurable, tag: tag)
      return true
    }
    let byteCount = pieces[0].byteCount + pieces[1].byteCount + pieces[2].byteCount
    guard let sealed = sealedBuffers.acquire(byteCount: byteCount) else { return false }
    guard seal(pieces, at: offset, cipher: cipher, into: sealed) else {
      sealedBuffers.release(sealed)
      return false
    }
    let index = take()
    operations[index] = Operation(
      kind: .write, isDurable: isDurable, file: Int32(file), pieceCount: 1,
      pieces: [Piece(sealed, 0, byteCount), .none, .none], offset: offset, byteCount: byteCount,
      tag: tag, cipher: cipher, sealed: sealed)
    enqueue(index)
    return true
  }

  /// Encrypts pieces, each of them whole sectors, one behind the other; false when it cannot.
  private func seal(
    _ pieces: [3 of Piece], at offset: UInt64, cipher: Int32, into sealed: IOBuffer
  ) -> Bool {
    let cipher = ciphers[Int(cipher)]
    var start = 0
    for number in 0..<3 where pieces[number].byteCount > 0 {
      let piece = pieces[number]
      let isSealed = piece.buffer.withSpan(piece.start, piece.byteCount) { plain in
        sealed.withMutableSpan(start, piece.byteCount) { target in
          cipher.encrypt(
            plain, into: &target, firstSector: DiskQueue.sector(at: offset + UInt64(start)))
        }
      }
      guard isSealed else { return false }
      start += piece.byteCount
    }
    return true
  }

  /// Ends an operation on encrypted data that succeeded or failed. Returns 0 or the errno.
  @inline(never)
  mutating func finishCipher(_ index: Int, errno: Int32) -> Int32 {
    let operation = operations[index]
    if operation.kind == .write {
      sealedBuffers.release(operation.sealed)
      return errno
    }
    guard errno == 0 else { return errno }
    let cipher = ciphers[Int(operation.cipher)]
    let piece = operation.pieces[0]
    let isOpen = piece.buffer.withMutableSpan(piece.start, piece.byteCount) { bytes in
      cipher.decrypt(&bytes, firstSector: DiskQueue.sector(at: operation.offset))
    }
    return isOpen ? 0 : EIO
  }

  private static func sector(at offset: UInt64) -> UInt64 {
    precondition(
      offset.isAligned(to: UInt64(CipherSector.byteCount)), "encrypted data begins inside a sector")
    return offset >> CipherSector.bits
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Files that hold images: what is opened, what is refused, and their space.
// Source: open(2), fallocate(2), lseek(2).

import BlockTypes
import Foundation
import LinuxIO
import TestSupport
import Testing

@Suite struct `Opening an image` {
  private func refusal(_ path: String, _ access: ImageFile.Access = .readWrite) -> Int32? {
    do throws(SystemError) {
      _ = try ImageFile(opening: path, access: access)
      return nil
    } catch { return error.errno }
  }

  @Test func `that is a folder is refused`() throws {
    let scratch = try Scratch()
    #expect(refusal(scratch.folder.root) == EISDIR)
    #expect(refusal(scratch.folder.root, .readOnly) == EINVAL)
  }

  @Test(.timeLimit(.minutes(1)))
  func `that is a FIFO is refused without waiting for its other end`() throws {
    let fifo = try Scratch().folder
    #expect(mkfifo(fifo.path("fifo"), 0o600) == 0)
    #expect(refusal(fifo.path("fifo"), .readOnly) == EINVAL)
    #expect(refusal(fifo.path("fifo")) == EINVAL)
  }

  @Test func `that is a character device is refused`() {
    #expect(refusal("/dev/null") == EINVAL)
  }

  @Test func `that is not there says so`() throws {
    let scratch = try Scratch()
    #expect(refusal(scratch.folder.path("none")) == ENOENT)
  }

  @Test func `anew refuses a name that is taken`() throws {
    let scratch = try Scratch()
    _ = try scratch.file([1, 2, 3])
    let thrown = #expect(throws: SystemError.self) {
      _ = try ImageFile(creating: scratch.folder.path("disk"))
    }
    #expect(thrown?.errno == EEXIST)
    #expect(try scratch.contents() == [1, 2, 3])
  }

  @Test func `by two names finds one file`() throws {
    let scratch = try Scratch()
    let first = try scratch.file([1])
    #expect(link(scratch.folder.path("disk"), scratch.folder.path("other")) == 0)
    let second = try ImageFile(opening: scratch.folder.path("other"), access: .readOnly)
    let third = try scratch.file([1], name: "third")
    let identities = [
      try first.file.identity(), .local(try second.identity()), try third.file.identity(),
    ]
    #expect(identities[0] == identities[1])
    #expect(identities[0] != identities[2])
  }
}

@Suite struct `An image file` {
  @Test func `reads fewer bytes only where it ends`() throws {
    let file = try Scratch().file(pattern(1_000))
    #expect(try file.file.read(at: 0, byteCount: 1_000) == pattern(1_000))
    #expect(try file.file.read(at: 990, byteCount: 20) == Array(pattern(1_000)[990...]))
    #expect(try file.file.read(at: 1_000, byteCount: 20).isEmpty)
  }

  @Test func `writes at an offset and grows by it`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(10))
    try file.file.write([7, 8], at: 9)
    #expect(try scratch.contents() == pattern(10).dropLast() + [7, 8])
    #expect(try file.file.byteCount() == 11)
  }

  @Test func `is cut and extended with zeroes by truncate`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(10))
    try file.file.truncate(to: 5)
    try file.file.truncate(to: 7)
    #expect(try scratch.contents() == pattern(10)[..<5] + [0, 0])
  }

  @Test func `tells where data and holes start`() throws {
    let file = try Scratch().file([])
    try file.file.truncate(to: 1 << 20)
    try file.file.write(pattern(65_536), at: 262_144)
    #expect(try file.file.nextData(from: 0) == 262_144)
    #expect(try file.file.nextHole(from: 262_144) == 327_680)
    #expect(try file.file.nextData(from: 327_680) == nil)
    #expect(try file.file.nextHole(from: 1 << 20) == nil)
  }
}

/// Bytes that a local file occupies.
private func allocated(_ file: LayerFile) throws -> UInt64 {
  let byteCount = try file.file.allocatedByteCount()
  return try #require(byteCount)
}

@Suite struct `The space of an image file` {
  @Test func `is given back by a hole, which reads as zeroes`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(1 << 20))
    let before = try allocated(file)
    try file.file.punchHole(ByteRange(start: 65_536, end: 524_288))
    #expect(try allocated(file) == before - (524_288 - 65_536))
    let contents = try scratch.contents()
    #expect(contents.count == 1 << 20)
    #expect(contents[65_536..<524_288].allSatisfy { $0 == 0 })
    #expect(contents[65_535] == pattern(1 << 20)[65_535])
    #expect(contents[524_288] == pattern(1 << 20)[524_288])
  }

  @Test func `is not touched by a hole of no bytes`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(8_192))
    try file.file.punchHole(ByteRange(start: 4_096, end: 4_096))
    try file.file.zeroAndProvision(ByteRange(start: 4_096, end: 4_096))
    #expect(try scratch.contents() == pattern(8_192))
  }

  @Test func `stays taken when a range is zeroed and provisioned`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(1 << 20))
    let before = try allocated(file)
    try file.file.zeroAndProvision(ByteRange(start: 0, end: 524_288))
    #expect(try allocated(file) >= before)
    #expect(try scratch.contents()[..<524_288].allSatisfy { $0 == 0 })
    #expect(try scratch.contents()[524_288] == pattern(1 << 20)[524_288])
  }

  @Test func `is taken where there was a hole when that is provisioned`() throws {
    let file = try Scratch().file([])
    try file.file.truncate(to: 1 << 20)
    #expect(try allocated(file) == 0)
    try file.file.zeroAndProvision(ByteRange(start: 0, end: 1 << 20))
    #expect(try allocated(file) >= 1 << 20)
    #expect(try file.file.byteCount() == 1 << 20)
  }

  @Test func `keeps the file's length when a range passes its end`() throws {
    let file = try Scratch().file(pattern(4_096))
    try file.file.zeroAndProvision(ByteRange(start: 4_096, end: 65_536))
    try file.file.punchHole(ByteRange(start: 4_096, end: 65_536))
    #expect(try file.file.byteCount() == 4_096)
  }

  @Test func `is taken ahead by growth`() throws {
    let scratch = try Scratch()
    let file = try scratch.file(pattern(4_096))
    try file.file.grow(from: 4_096, to: 1 << 20)
    #expect(try file.file.byteCount() == 1 << 20)
    #expect(try allocated(file) >= 1 << 20)
    #expect(try scratch.contents()[4_096...].allSatisfy { $0 == 0 })
  }
}

@Suite struct `A lock on an image` {
  @Test func `for reading is shared by readers`() throws {
    let scratch = try Scratch()
    let first = try scratch.file([1], access: .readOnly)
    let second = try ImageFile(opening: first.path, access: .readOnly)
    try first.file.lockForReading()
    try second.lockForReading()
  }

  @Test func `for writing keeps a second writer and every reader out`() throws {
    let scratch = try Scratch()
    let first = try scratch.file([1])
    let second = try ImageFile(opening: first.path, access: .readWrite)
    try first.file.lockForWriting()
    #expect(throws: ImageError.self) { try lock(second, forWriting: true) }
    #expect(throws: ImageError.self) { try lock(second, forWriting: false) }
    first.file.unlock()
    try second.lockForWriting()
  }

  private func lock(_ file: borrowing ImageFile, forWriting: Bool) throws {
    if forWriting { try file.lockForWriting() } else { try file.lockForReading() }
  }
}

private let meanings: [(Int32, BlockErrno)] = [
  (0, .none), (ENOSPC, .noSpace), (EDQUOT, .noSpace), (EFBIG, .noSpace),
  (EROFS, .readOnly), (EPERM, .readOnly), (EACCES, .readOnly), (ENOMEM, .noMemory),
  (EOPNOTSUPP, .notSupported), (EIO, .io), (EINVAL, .io), (EBADF, .io), (9_999, .io),
]

@Suite struct `An errno becomes the error of a request` {
  @Test(arguments: meanings)
  func `as the table says`(systemErrno: Int32, error: BlockErrno) {
    #expect(BlockErrno(systemErrno: systemErrno) == error)
  }

  @Test func `and a sentence with the call in front for people`() {
    let error = SystemError(errno: ENOENT, call: "open")
    #expect(error.description == "open: No such file or directory")
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The threads of a conversion. Each takes the next piece, reads it, looks for zeroes and packs it
// beside the others; places are given in the order of the disk, one piece after the other; then
// each writes its own. The first failure stops all of them. Starts threads; reads and writes files.

import BlockTypes
import LinuxIO
import Synchronization

/// What the threads share.
final class ConvertWork: Sendable {
  private struct State {
    var plan: ConvertPlan
    var target: ConvertTarget
    /// The piece that is given its place next.
    var turn: UInt64 = 0
    /// The threads that wait, by the number of their piece.
    var waiting: [UInt64: Int] = [:]
    var fault: ImageFault?
  }

  private let state: Mutex<State>
  private let file: LayerFile
  private let cutter: ConvertCutter
  private let wakers: [Waker]
  private let ended: Waker
  private let progress: @Sendable (UInt64) -> Void

  /// A semaphore; a class because arrays hold no noncopyable values.
  private final class Waker: Sendable {
    let counter: EventCounter

    init(_ path: String) throws(ImageFault) {
      do throws(SystemError) {
        counter = try EventCounter(.semaphore)
      } catch {
        throw ImageFault(path, error)
      }
    }
  }

  /// - Parameter progress: called with the end of each piece that is written.
  init(
    _ plan: ConvertPlan, to target: ConvertTarget, file: LayerFile, cutter: ConvertCutter,
    threadCount: Int, progress: @escaping @Sendable (UInt64) -> Void
  ) throws(ImageFault) {
    self.file = file
    self.cutter = cutter
    self.progress = progress
    var wakers: [Waker] = []
    for _ in 0..<threadCount { wakers.append(try Waker(file.path)) }
    self.wakers = wakers
    ended = try Waker(file.path)
    state = Mutex(State(plan: plan, target: target))
  }

  /// Converts everything and returns the target, whose end is still to be written.
  func run() throws(ImageFault) -> ConvertTarget {
    var startedCount = 0
    for index in wakers.indices {
      do throws(SystemError) {
        try OwnThread {
          self.work(index)
          self.ended.counter.signal()
        }.detach()
        startedCount += 1
      } catch {
        fail(ImageFault(file.path, error))
        break
      }
    }
    for _ in 0..<startedCount { ended.counter.take() }
    let (fault, target) = state.withLock { ($0.fault, $0.target) }
    if let fault { throw fault }
    return target
  }

  private func work(_ index: Int) {
    var buffers = ConvertBuffers()
    do throws(ImageFault) {
      while let piece = try takePiece() {
        let parts = try cutter.cut(piece, &buffers)
        guard let writes = try place(parts, of: piece, thread: index) else { return }
        try write(writes, of: piece, buffers.disk)
        progress(piece.range.end)
      }
    } catch {
      fail(error)
    }
  }

  /// The next piece; nil at the end, or when a thread has failed.
  private func takePiece() throws(ImageFault) -> ConvertPiece? {
    // The lock's own rethrowing does not carry the type of an error.
    let result = state.withLock { state -> Result<ConvertPiece?, ImageFault> in
      if state.fault != nil { return .success(nil) }
      do throws(ImageFault) {
        return .success(try state.plan.next())
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  /// Waits for the turn of the piece and gives its parts their places; nil when a thread failed.
  private func place(
    _ parts: [ConvertPart], of piece: ConvertPiece, thread index: Int
  ) throws(ImageFault) -> [ConvertWrite]? {
    while true {
      let mayGo = state.withLock { state in
        if state.turn == piece.number || state.fault != nil { return true }
        state.waiting[piece.number] = index
        return false
      }
      if mayGo { break }
      wakers[index].counter.take()
    }
    let path = file.path
    let result = state.withLock { state -> Result<[ConvertWrite]?, ImageFault> in
      if state.fault != nil { return .success(nil) }
      do throws(ImageError) {
        let writes = try state.target.place(parts, from: piece.range.start)
        state.turn += 1
        if let next = state.waiting.removeValue(forKey: state.turn) {
          wakers[next].counter.signal()
        }
        return .success(writes)
      } catch {
        return .failure(ImageFault(path, error))
      }
    }
    return try result.get()
  }

  private func write(
    _ writes: [ConvertWrite], of piece: ConvertPiece, _ buffer: [UInt8]
  ) throws(ImageFault) {
    for write in writes {
      do throws(SystemError) {
        switch write {
        case .buffer(let part, let place): try file.file.write(buffer, part, at: place)
        case .bytes(let bytes, let place): try file.file.write(bytes, at: place)
        }
      } catch {
        throw ImageFault(
          file.path, "\(error) (bytes \(piece.range.start) to \(piece.range.end) of the disk)",
          wayOut: ImageFault.wayOut(of: error.errno))
      }
    }
  }

  /// Keeps the first failure and wakes all who wait.
  private func fail(_ fault: ImageFault) {
    state.withLock { state in
      if state.fault == nil { state.fault = fault }
      for index in state.waiting.values { wakers[index].counter.signal() }
      state.waiting = [:]
    }
  }
}

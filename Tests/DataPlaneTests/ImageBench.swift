// SPDX-License-Identifier: Apache-2.0
//
// An image with its chain and requests on it, but without sockets: requests are started, moved
// step by step, and looked at from the inside. Reads and writes files in a temporary folder.

import Bitmaps
import BlockTypes
import Foundation
import ImageTools
import LinuxIO
import NBDProtocol
import Qcow2
import TestSupport

@testable import DataPlane

extension ImageStack {
  /// One round of what `ExportLoop.tick` does between two sockets. Returns whether another round
  /// may move something at once.
  mutating func runRound() -> Bool {
    runReady()
    startFlushIfWanted()
    disks.submit()
    return takeDiskCompletions() || endDraining() || !ready.isEmpty
  }

  mutating func wakeDeferred() { ready.append(contentsOf: &deferred, &requests.slots) }

  mutating func takeFinished() -> Int? { finished.popFirst(&requests.slots) }

  /// Takes a slot and puts a request in it, as `ExportLoop.execute` does.
  mutating func prepare(
    _ command: Command, _ offset: UInt64, _ length: UInt64, _ flags: CommandFlags,
    payload: [UInt8]
  ) -> Int? {
    guard let slot = requests.acquire() else { return nil }
    let range = ByteRange(start: offset, end: offset + length).roundedOut(to: alignment)
    requests.slots[slot].command = command
    requests.slots[slot].flags = flags
    requests.slots[slot].offset = offset
    requests.slots[slot].length = length
    requests.slots[slot].bufferStart = range.start
    requests.slots[slot].stage = .receiving
    if command == .read || command == .write,
      let buffer = buffers.acquire(byteCount: Int(range.byteCount))
    {
      requests.slots[slot].buffer = buffer
      let start = Int(offset - range.start)
      if !payload.isEmpty {
        buffer.withAddress(start, payload.count) {
          $0.copyMemory(from: payload, byteCount: payload.count)
        }
      }
    }
    return slot
  }

  /// The payload of a READ that has finished.
  func payload(_ slot: Int) -> [UInt8] {
    let request = requests.slots[slot]
    let count = Int(request.length)
    return request.buffer.withAddress(Int(request.offset - request.bufferStart), count) {
      Array(UnsafeRawBufferPointer(start: $0, count: count))
    }
  }
}

/// An image under test.
final class ImageBench {
  var image: ImageStack
  let folder: TemporaryFolder
  let path: String
  private let plan: ExportPlan
  /// Slots of requests that a test has started; others are the image's own work.
  private var asked: Set<Int> = []
  /// What became of requests that nobody asked about yet.
  /// Why the last change of what the image keeps was not made.
  private(set) var changeFault: BitmapFault?
  /// How the last change of the file ended; nil as long as none has.
  private(set) var editOutcome: ImageEdit.Outcome?
  private var results: [Int: (error: BlockErrno, data: [UInt8])] = [:]

  /// Opens `name` in `folder` with all its backing files.
  init(
    _ folder: TemporaryFolder, _ name: String, format: ImageFormat = .qcow2,
    engine: ExportPlan.Engine = .sync, isReadOnly: Bool = false, cacheByteCount: Int = 1 << 20,
    slotCount: Int = 2_000, overlapCheck: OverlapCheck = .cached,
    durability: BitmapDurability = .region, packsWrites: Bool = false
  ) throws {
    self.folder = folder
    path = folder.path(name)
    var options = OpenChain.Options(detection: .topQcow2)
    options.keepsBitmaps = true
    let layers = try OpenChain.open(
      path: path, format: format, access: isReadOnly ? .readOnly : .readWrite,
      options: options)
    var plan = ExportPlan(
      name: "", description: "", isReadOnly: isReadOnly,
      layers: layers.map { layer in
        LayerPlan(
          storage: layer.storage, dataStorage: layer.dataStorage,
          format: layer.header.map { .qcow2($0) } ?? .raw,
          diskByteCount: layer.exactDiskByteCount, cipher: layer.cipher)
      }, engine: engine, limits: RequestLimits(), minimumBlockByteCount: 1,
      metadataCacheByteCount: cacheByteCount, spinNanosecondsMax: 0)
    plan.overlapCheck = overlapCheck
    plan.bitmapDurability = durability
    plan.packsWrites = packsWrites
    self.plan = plan
    image = try ImageStack(plan, slotCount: slotCount)
  }

  // MARK: Step by step

  /// Starts a request and returns its slot.
  func start(
    _ command: Command, _ offset: UInt64, _ length: UInt64, flags: CommandFlags = [],
    payload: [UInt8] = []
  ) throws -> Int {
    let slot = try prepare(command, offset, length, flags: flags, payload: payload)
    image.start(slot)
    return slot
  }

  /// Puts a request in a slot, as one that has arrived and has not been looked at.
  func prepare(
    _ command: Command, _ offset: UInt64, _ length: UInt64, flags: CommandFlags = [],
    payload: [UInt8] = []
  ) throws -> Int {
    guard let slot = image.prepare(command, offset, length, flags, payload: payload) else {
      throw BenchError("no slot is free")
    }
    asked.insert(slot)
    return slot
  }

  func start(write data: [UInt8], _ offset: UInt64, flags: CommandFlags = []) throws -> Int {
    try start(.write, offset, UInt64(data.count), flags: flags, payload: data)
  }

  /// One round: with the sync engine this does exactly what is queued now.
  @discardableResult func step() -> Bool {
    image.wakeDeferred()
    image.takePoolCompletions()
    let movedSome = image.runRound()
    collect()
    return movedSome
  }

  private func collect() {
    while let slot = image.takeFinished() {
      if image.store.work.slot == Int32(slot) {
        changeFault = image.commitBitmapChange(slot) { _ in nil }
        image.retire(slot)
        continue
      }
      if image.standstill.slot == Int32(slot) {
        editOutcome = image.endStandstill().outcome
        image.retire(slot)
        continue
      }
      let error = image.requests.slots[slot].error
      let isRead = image.requests.slots[slot].command == .read
      guard asked.remove(slot) != nil else {
        image.retire(slot)
        continue
      }
      results[slot] = (error, isRead && error == .none ? image.payload(slot) : [])
      image.requests.slots[slot].stage = .replying
      image.retire(slot)
    }
  }

  /// The outcome of a request if it has one; it is forgotten then.
  func outcome(_ slot: Int) -> (error: BlockErrno, data: [UInt8])? {
    results.removeValue(forKey: slot)
  }

  /// Moves everything until `slot` is done.
  func finish(_ slot: Int, deadlineSeconds: Double = 20) throws -> BlockErrno {
    try finishReading(slot, deadlineSeconds: deadlineSeconds).error
  }

  func finishReading(
    _ slot: Int, deadlineSeconds: Double = 20
  ) throws -> (error: BlockErrno, data: [UInt8]) {
    try until(deadlineSeconds: deadlineSeconds) { self.results[slot] != nil }
    guard let outcome = outcome(slot) else { throw BenchError("no outcome") }
    return outcome
  }

  /// Steps until `isOver`; throws when it goes on for too long.
  func until(deadlineSeconds: Double = 20, _ isOver: () -> Bool) throws {
    let deadline = Deadline(seconds: deadlineSeconds)
    while !isOver() {
      guard deadline.secondsLeft > 0 else { throw BenchError("nothing moves any more") }
      if !step() { usleep(100) }
    }
  }

  // MARK: Changes of the file

  /// Begins a change for which the image stands still.
  func startEdit(_ perform: @escaping @Sendable (LayerFile) -> ImageEdit.Outcome) throws {
    editOutcome = nil
    guard image.startStandstill(ImageEdit(perform), plan) else { throw BenchError("no slot") }
  }

  /// Moves everything until the change has ended. Returns what there is to tell of it.
  @discardableResult func finishEdit() throws -> String {
    try until { self.editOutcome != nil }
    switch editOutcome {
    case .done(let text): return text
    case .failed(let reason, _): throw BenchError(reason)
    case nil: throw BenchError("no outcome")
    }
  }

  func startSnapshot(_ name: String) throws {
    try startEdit { storage in
      do throws(ImageFault) {
        return .done(try Snapshots.create(inStandingStill: storage, name: name))
      } catch {
        return .failed(error.description, losesWrites: error.losesWrites)
      }
    }
  }

  @discardableResult func snapshot(_ name: String) throws -> String {
    try startSnapshot(name)
    return try finishEdit()
  }

  func deleteSnapshot(_ idOrName: String) throws {
    try startEdit { storage in
      do throws(ImageFault) {
        return .done(try Snapshots.delete(inStandingStill: storage, idOrName: idOrName))
      } catch {
        return .failed(error.description, losesWrites: error.losesWrites)
      }
    }
    try finishEdit()
  }

  // MARK: Whole requests

  func read(_ offset: UInt64, _ length: Int) throws -> [UInt8] {
    let outcome = try finishReading(start(.read, offset, UInt64(length)))
    guard outcome.error == .none else { throw BenchError("READ: \(outcome.error)") }
    return outcome.data
  }

  func readError(_ offset: UInt64, _ length: Int) throws -> BlockErrno {
    try finish(start(.read, offset, UInt64(length)))
  }

  @discardableResult
  func write(_ data: [UInt8], _ offset: UInt64, flags: CommandFlags = []) throws -> BlockErrno {
    try finish(start(write: data, offset, flags: flags))
  }

  @discardableResult
  func call(
    _ command: Command, _ offset: UInt64 = 0, _ length: UInt64 = 0, flags: CommandFlags = []
  ) throws -> BlockErrno {
    try finish(start(command, offset, length, flags: flags))
  }

  @discardableResult func flush() throws -> BlockErrno { try call(.flush) }

  /// Flushes and gives back until nothing is left to do, as a clean stop does.
  func settle() throws {
    for _ in 0..<8 where image.needsFlush {
      try flush()
      try until { self.image.isIdle }
    }
    guard !image.needsFlush else { throw BenchError("the image does not come to rest") }
  }

  // MARK: Looking inside

  // The macros of Swift Testing take copyable receivers only, which the image is not.
  var hasDirtyTables: Bool { image.hasDirtyTables }
  var hasUnsyncedWrites: Bool { image.hasUnsyncedWrites }
  var releases: ReleaseQueue { image.releases }
  var claimCount: Int { image.claims.indices.count }
  var systemCallCount: UInt64 { image.disks.systemCallCount }
  func fileByteCount() throws -> UInt64 { try image.storages[0].file.byteCount() }

  // MARK: Looking from outside

  /// What QEMU says about the image as it is in its file now.
  func check(_ name: String = "copy") throws -> CheckedImage {
    let copy = folder.path(name)
    _ = unlink(copy)
    try FileManager.default.copyItem(atPath: path, toPath: copy)
    return try CheckedImage(copy)
  }

  /// A big-endian word of the image's file.
  func word(at offset: UInt64) throws -> UInt64 {
    try image.storages[0].file.read(at: offset, byteCount: 8).reduce(0) { $0 << 8 | UInt64($1) }
  }

  func bytes(at offset: UInt64, _ count: Int) throws -> [UInt8] {
    try image.storages[0].file.read(at: offset, byteCount: count)
  }

  /// The bytes that the file occupies.
  func allocatedByteCount() throws -> UInt64 {
    try image.storages[0].file.allocatedByteCount() ?? 0
  }

  /// Where the file keeps the guest cluster at `offset`; nil when the active layer does not.
  func host(of offset: UInt64) throws -> UInt64? {
    _ = try read(offset, 1)  // so that the table is in memory
    guard case .data(0, let host, _) = image.resolve(offset, offset + 1) else {
      return nil
    }
    return host
  }

  /// The count of the cluster at `host` as the allocator has it in memory.
  func count(ofClusterAt host: UInt64) throws -> UInt64 {
    let geometry = image.layers[0].geometry
    let cluster = host / geometry.clusterByteCount
    let block = image.allocator.table[Int(cluster / geometry.refcountBlockEntryCount)]
    guard block != 0 else { return 0 }
    let place = CountPlace(cluster: cluster, block: block, geometry: geometry)
    guard let page = image.cache.find(0, place.pageOffset) else {
      let bits = 1 << geometry.refcountOrder
      guard bits == 16 else { throw BenchError("a count of \(bits) bits is not in memory") }
      let at = place.pageOffset + UInt64(place.indexInPage * 2)
      return try bytes(at: at, 2).reduce(0) { $0 << 8 | UInt64($1) }
    }
    return image.cache.pages[page].buffer.withSpan(0, geometry.pageByteCount) {
      Refcount.load($0, at: place.indexInPage, order: geometry.refcountOrder)
    }
  }
}

struct BenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

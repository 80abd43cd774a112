// SPDX-License-Identifier: Apache-2.0
//
// Making an L2 table of the active layer: a new one where the L1 entry is empty, a copy where a
// snapshot shares the old one. Spec: qcow2.rst, "Cluster mapping"; "Snapshots" (COPIED flag).

import BlockTypes
import LinuxIO
import Qcow2

extension ImageStack {
  /// Takes a cluster for the table of L1 entry `tableIndex` and fills it. One table at a time.
  mutating func makeTable(_ index: Int) -> Progress {
    let l1Index = requests.slots[index].tableIndex
    let old = L1Entry(rawValue: layers[0].l1[l1Index])
    if tableMaker != Int32(index) {
      // While this request waited, another one may have made the table.
      if !old.isEmpty, old.isCopied {
        requests.slots[index].stage = requests.slots[index].afterTable
        return .more
      }
      if tableMaker >= 0 {
        allocationWaiters.append(index, &requests.slots)
        return .waits
      }
      tableMaker = Int32(index)
      requests.slots[index].tableHost = 0
    }
    if requests.slots[index].tableHost == 0 {
      switch takeClusters(index, 1) {
      case .waits: return .waits
      case .failed(let error): return fail(index, error)
      case .taken(let host, _, let isFresh):
        guard forgetPages(ofClusterAt: host) else {
          return fail(
            index, declareDamage("the table at host offset \(host) is counted as free"))
        }
        requests.slots[index].tableHost = host
        if old.isEmpty && isFresh { return installTable(index) }
      }
    }
    return fillTable(index, old)
  }

  /// Writes zeroes, or the shared table's bytes, to the new cluster.
  private mutating func fillTable(_ index: Int, _ old: L1Entry) -> Progress {
    guard disks.hasRoom else { return waitForQueue(index) }
    let byteCount = Int(layers[0].geometry.clusterByteCount)
    if old.isEmpty {
      writeTable(index, DiskQueue.Piece(zeroes, 0, byteCount))
      return .more
    }
    if requests.slots[index].tableCopy.isEmpty {
      guard let buffer = buffers.acquire(byteCount: byteCount) else {
        return fail(index, .noMemory)
      }
      requests.slots[index].tableCopy = buffer
      disks.queueRead(
        file: layers[0].file, at: old.tableOffset.byteOffset,
        into: DiskQueue.Piece(buffer, 0, byteCount), tag: IOTag(readFor: index, block: 0).rawValue)
      requests.slots[index].readCount += 1
    }
    if requests.slots[index].readCount > 0 { return .waits }
    writeTable(index, DiskQueue.Piece(requests.slots[index].tableCopy, 0, byteCount))
    return .more
  }

  private mutating func writeTable(_ index: Int, _ piece: DiskQueue.Piece) {
    disks.queueWrite(
      file: layers[0].file, at: requests.slots[index].tableHost, from: [piece, .none, .none],
      isDurable: false, tag: IOTag(.tableWrite, index).rawValue)
    requests.slots[index].tableWriteCount += 1
    requests.slots[index].stage = .writingTable
  }

  /// Points the L1 entry at the table. The entry reaches the disk behind the table (Flush.swift).
  mutating func installTable(_ index: Int) -> Progress {
    if requests.slots[index].tableWriteCount > 0 { return .waits }
    let l1Index = requests.slots[index].tableIndex
    let old = L1Entry(rawValue: layers[0].l1[l1Index])
    let host = HostOffset(byteOffset: requests.slots[index].tableHost)
    layers[0].l1[l1Index] = L1Entry(tableAt: host).rawValue
    flush.markTableInstalled(l1Index)
    overlapGuard.addL2Table(host.byteOffset >> UInt64(layers[0].geometry.clusterBits))
    if !old.isEmpty { freeTable(old) }
    buffers.release(requests.slots[index].tableCopy)
    requests.slots[index].tableCopy = .empty
    requests.slots[index].tableHost = 0
    tableMaker = -1
    ready.append(contentsOf: &allocationWaiters, &requests.slots)
    requests.slots[index].stage = requests.slots[index].afterTable
    return .more
  }

  /// Drops what the cache remembers of a table that was here before; false when there still is
  /// one, which the damaged counts of the image do not know of.
  private mutating func forgetPages(ofClusterAt host: UInt64) -> Bool {
    let geometry = layers[0].geometry
    let end = host + geometry.clusterByteCount
    for offset in stride(from: host, to: end, by: geometry.pageByteCount) {
      guard let page = cache.find(0, offset) else { continue }
      guard cache.pages[page].canBeEvicted else { return false }
      cache.remove(page)
    }
    return true
  }

  /// Gives back the cluster of a table that was never installed.
  mutating func abandonTable(_ index: Int) {
    guard tableMaker == Int32(index) else { return }
    tableMaker = -1
    if requests.slots[index].tableHost != 0 {
      let bits = UInt64(layers[0].geometry.clusterBits)
      releases.addUnmapped(cluster: requests.slots[index].tableHost >> bits, count: 1)
      wakeReleases()
    }
    ready.append(contentsOf: &allocationWaiters, &requests.slots)
  }
}

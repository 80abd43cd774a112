// SPDX-License-Identifier: Apache-2.0
//
// Where each part of a disk comes from, over the whole backing chain.

import BlockTypes
import LinuxIO

/// Maps images.
public enum Map {
  /// Sends the extents of the disk to `extent`, in order and merged, with the path of the layer
  /// that each comes from.
  ///
  /// - Parameters:
  ///   - start: where to begin; nothing comes when it is past the end.
  ///   - byteCountMax: how far to go, nil for the whole disk.
  ///   - allowed: what images may name besides the files in their own folders.
  ///   - snapshot: id or name of the image's snapshot to be mapped in the place of its disk.
  public static func run(
    path: String, format: ImageFormat?, takesLocks: Bool, start: UInt64 = 0,
    byteCountMax: UInt64? = nil, snapshot: String? = nil, allowed: AllowedFiles = AllowedFiles(),
    remote: (any RemoteOpener)? = nil,
    extent: (MapExtent, _ path: String) throws(ImageFault) -> Void
  ) throws(ImageFault) {
    var options = OpenChain.Options(
      detection: .top, takesLocks: takesLocks, snapshot: snapshot, remote: remote)
    options.needsKeys = false
    options.allowed = allowed
    let layers = try OpenChain.open(
      path: path, format: format, access: .readOnly, options: options)
    var maps: [LayerMap] = []
    for layer in layers { maps.append(try LayerMap(layer)) }
    let (limit, overflows) = start.addingReportingOverflow(byteCountMax ?? .max)
    let end = min(layers[0].diskByteCount, overflows ? .max : limit)
    var pending: MapExtent?
    var offset = start
    while offset < end {
      let next: MapExtent
      do throws(ImageFault) {
        next = try resolve(at: offset, end: end, &maps)
      } catch let fault {
        // What was found before the fault is shown.
        if let pending { try extent(pending, maps[pending.depth].path) }
        throw fault
      }
      offset = next.end
      guard var last = pending else {
        pending = next
        continue
      }
      if last.merges(with: next) {
        last.byteCount += next.byteCount
        pending = last
      } else {
        try extent(last, maps[last.depth].path)
        pending = next
      }
    }
    if let pending { try extent(pending, maps[pending.depth].path) }
  }

  /// The source of the disk at `offset`: the first layer from the top that holds it. What no layer
  /// holds reads as zeroes and counts for the layer where the search ended.
  static func resolve(
    at offset: UInt64, end: UInt64, _ maps: inout [LayerMap]
  ) throws(ImageFault) -> MapExtent {
    var limit = end - offset
    var depth = 0
    while true {
      var run = try maps[depth].run(at: offset, byteCountMax: limit)
      precondition(run.byteCount > 0, "a layer reports an empty run")
      limit = run.byteCount
      let continues =
        !run.isPresent && depth + 1 < maps.count && offset < maps[depth + 1].diskByteCount
      if continues {
        depth += 1
        continue
      }
      if !run.isPresent { run.isZero = true }
      return MapExtent(
        start: offset, byteCount: limit, depth: depth, isPresent: run.isPresent,
        isZero: run.isZero, isData: run.isData, hostOffset: run.hostOffset)
    }
  }
}

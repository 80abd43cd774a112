// SPDX-License-Identifier: Apache-2.0
//
// Where each part of a foreign image's disk is.

import ForeignImages

extension Map {
  /// As `run` for an image of one of our formats. The path is that of the file that holds a run.
  public static func run(
    path: String, foreign format: ForeignFormat, wasSaid: Bool, takesLocks: Bool, start: UInt64,
    byteCountMax: UInt64?, allowed: AllowedFiles = AllowedFiles(),
    extent: (MapExtent, _ path: String) throws(ImageFault) -> Void
  ) throws(ImageFault) {
    var layer = try ForeignLayer(
      path: path, format: format, takesLocks: takesLocks, opensOthers: wasSaid,
      allowed: allowed)
    let (limit, overflows) = start.addingReportingOverflow(byteCountMax ?? .max)
    let end = min(layer.diskByteCount, overflows ? .max : limit)
    var pending: (extent: MapExtent, file: Int)?
    var offset = start
    while offset < end {
      let (found, isHole) = try layer.extent(at: offset, byteCountMax: end - offset)
      let next = MapExtent.of(found, isHole: isHole, at: offset)
      offset += found.byteCount
      if let last = pending {
        if last.file == next.file && last.extent.merges(with: next.extent) {
          pending?.extent.byteCount += next.extent.byteCount
          continue
        }
        try extent(last.extent, layer.files[last.file].storage.path)
      }
      pending = next
    }
    if let pending { try extent(pending.extent, layer.files[pending.file].storage.path) }
  }
}

extension MapExtent {
  /// The extent as it is told, and the number of its file.
  fileprivate static func of(
    _ found: ForeignExtent, isHole: Bool, at offset: UInt64
  ) -> (extent: MapExtent, file: Int) {
    func told(isPresent: Bool, isData: Bool, hostOffset: UInt64? = nil) -> MapExtent {
      MapExtent(
        start: offset, byteCount: found.byteCount, depth: 0, isPresent: isPresent,
        isZero: !isData || isHole, isData: isData, hostOffset: hostOffset)
    }
    switch found.content {
    case .absent: return (told(isPresent: false, isData: false), 0)
    case .zero: return (told(isPresent: true, isData: false), 0)
    case .data(let file, let start, _):
      return (told(isPresent: true, isData: true, hostOffset: start), file)
    case .packed(let unit): return (told(isPresent: true, isData: true), unit.file)
    }
  }
}

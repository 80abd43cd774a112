// SPDX-License-Identifier: Apache-2.0
//
// A dirty bitmap in the user's words. This file performs no I/O.

import Bitmaps
import ImageTools

/// `NAME[:GRANULARITY]`.
public struct BitmapConfig: Hashable, Sendable {
  public let name: String
  public let granularityByteCount: UInt64

  /// nil when what stands behind the last colon is no size. A name with a colon needs one more,
  /// and a granularity.
  public init?(parsing text: String) {
    guard let colon = text.lastIndex(of: ":") else {
      name = text
      granularityByteCount = DirtyBitmap.defaultGranularity
      return
    }
    guard let byteCount = ByteCountText.parse(String(text[text.index(after: colon)...])) else {
      return nil
    }
    name = String(text[..<colon])
    granularityByteCount = byteCount
  }

  /// What makes the bitmap.
  var action: BitmapAction {
    .add(name: name, granularityByteCount: granularityByteCount, isEnabled: true)
  }
}

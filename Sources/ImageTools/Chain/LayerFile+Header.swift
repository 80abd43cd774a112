// SPDX-License-Identifier: Apache-2.0
//
// Changing the header of an image at rest: all verbs do it here.

import BlockTypes
import LinuxIO
import Qcow2

extension LayerFile {
  /// Changes the header on disk to `header` and makes it durable; what did not change stays as it
  /// is, known or not. What was written before is not made durable first.
  ///
  /// Throws when the header does not fit in its cluster.
  func rewriteHeader(to header: Header) throws(ImageFault) {
    var old = try read(at: 0, byteCount: Int(header.geometry.clusterByteCount))
    let rewrite: HeaderRewrite
    do throws(ImageError) {
      rewrite = try HeaderRewrite(of: old, to: header)
    } catch {
      throw ImageFault(path, error)
    }
    for stage in rewrite.stages {
      for range in HeaderRewrite.changedBlocks(from: old, to: stage, blockByteCount: 512) {
        try write(Array(stage[range]), at: UInt64(range.lowerBound))
      }
      try synchronize()
      old = stage
    }
  }
}

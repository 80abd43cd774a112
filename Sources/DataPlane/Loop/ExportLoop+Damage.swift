// SPDX-License-Identifier: Apache-2.0
//
// The export of an image that turned out to be damaged: it becomes read-only, and the log says why,
// once. Source: QEMU, the event BLOCK_IMAGE_CORRUPTED.

import LinuxIO

extension ExportLoop {
  /// Refuses changes from now on, to clients that are here and to those that come.
  mutating func reportDamage() {
    image.overlapGuard.isUnreported = false
    plan.isReadOnly = true
    notice.publish(ExportLoop.describe(plan, image.bitmaps))
    for index in 0..<connections.capacity where connections.isOccupied(index) {
      connections[index].rules.traits.isReadOnly = true
    }
    let text =
      "stratad: BLOCK_IMAGE_CORRUPTED export '\(plan.name)': \(image.overlapGuard.verdict ?? ""); "
      + "it is read-only now; stop it and repair the image (strata check -r all)"
    // Nobody may be left to read it; `status` says the same.
    do throws(SystemError) { try TextOutput.standardError.writeLine(text) } catch {}
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// The encryption header of somebody else's image. Source: LUKS1 On-Disk Format Specification.

import BlockTypes

func fuzzEncryptionHeader(_ bytes: [UInt8]) {
  let areaByteCount: UInt64 = 4 << 20
  let header: LUKSHeader
  do throws(ImageError) {
    header = try LUKSHeader(decoding: bytes, areaByteCount: areaByteCount)
  } catch {
    require(!error.reason.isEmpty, "a fault without words")
    return
  }
  require((1...64).contains(header.keyByteCount), "a key of no size")
  let active = header.slots.filter(\.isActive)
  let work = active.reduce(UInt64(header.digestIterationCount)) { $0 + UInt64($1.iterationCount) }
  require(work <= LUKSHeader.iterationSumMax, "more work than anybody allows")
  for slot in header.slots {
    let end = slot.materialOffset + UInt64(header.materialByteCount)
    require(end <= areaByteCount, "stripes behind the end of their area")
  }
  do throws(ImageError) {
    let again = try LUKSHeader(decoding: header.encode(), areaByteCount: areaByteCount)
    require(again == header, "the header is another one when it is written")
  } catch {
    fatalError("a header that was accepted is refused: \(error)")
  }
  // Names are text, whatever they say.
  require(!(header.cipherText + header.modeText + header.vectorText).contains("\0"), "a zero byte")
  _ = header.vectorHashText
  do throws(ImageError) {
    let specification = try header.specification()
    require(specification.keyByteCount == header.keyByteCount, "a key of another size")
    _ = try header.hash()
  } catch {
    require(error.kind == .unsupported, "a name is no damage")
  }
}

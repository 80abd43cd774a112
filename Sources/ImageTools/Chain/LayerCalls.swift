// SPDX-License-Identifier: Apache-2.0
//
// The calls that verbs make on a layer's file, with errors that name the file.

import BlockTypes
import LinuxIO

extension LayerFile {
  func identity() throws(ImageFault) -> LayerStorage.Identity {
    do throws(SystemError) { return try file.identity() } catch { throw ImageFault(path, error) }
  }

  func byteCount() throws(ImageFault) -> UInt64 {
    do throws(SystemError) { return try file.byteCount() } catch { throw ImageFault(path, error) }
  }

  /// nil when nobody tells.
  func allocatedByteCount() throws(ImageFault) -> UInt64? {
    do throws(SystemError) {
      return try file.allocatedByteCount()
    } catch { throw ImageFault(path, error) }
  }

  /// Whether the file can be truncated: a block device or an export cannot.
  func isRegularFile() throws(ImageFault) -> Bool {
    do throws(SystemError) {
      return try file.isGrowable()
    } catch { throw ImageFault(path, error) }
  }

  /// Whether somebody knows where the file has holes.
  func tellsHoles() throws(ImageFault) -> Bool {
    do throws(SystemError) {
      return try file.tellsHoles()
    } catch { throw ImageFault(path, error) }
  }

  /// The status of the first bytes of `range`; nil when nobody can tell.
  func firstRun(of range: ByteRange) throws(ImageFault) -> StatusRun? {
    do throws(SystemError) {
      return try file.firstRun(of: range)
    } catch { throw ImageFault(path, error) }
  }

  /// Reads `byteCount` bytes at `offset`; fewer only where the file ends.
  func read(at offset: UInt64, byteCount: Int) throws(ImageFault) -> [UInt8] {
    do throws(SystemError) {
      return try file.read(at: offset, byteCount: byteCount)
    } catch { throw ImageFault(path, error) }
  }

  func write(_ bytes: [UInt8], at offset: UInt64) throws(ImageFault) {
    do throws(SystemError) {
      try file.write(bytes, at: offset)
    } catch { throw ImageFault(path, error) }
  }

  func truncate(to byteCount: UInt64) throws(ImageFault) {
    do throws(SystemError) {
      try file.truncate(to: byteCount)
    } catch { throw ImageFault(path, error) }
  }

  func synchronize() throws(ImageFault) {
    do throws(SystemError) {
      try file.synchronize()
    } catch {
      var fault = ImageFault(path, error)
      fault.losesWrites = true
      throw fault
    }
  }

  func nextData(from offset: UInt64) throws(ImageFault) -> UInt64? {
    do throws(SystemError) {
      return try file.nextData(from: offset)
    } catch { throw ImageFault(path, error) }
  }

  func nextHole(from offset: UInt64) throws(ImageFault) -> UInt64? {
    do throws(SystemError) {
      return try file.nextHole(from: offset)
    } catch { throw ImageFault(path, error) }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// Opens images that are NBD exports: those that the user names, and backing files where the
// policy allows them. Nothing is resolved or dialled before the policy has been asked.

import ImageTools
import LinuxIO
import NBDClient
import NBDProtocol
import Synchronization

/// The exports that one program uses as images.
public final class RemoteImages: RemoteOpener {
  private let policy: RemotePolicy
  private let opened = Mutex<[ExportStorage]>([])

  /// Time for goodbyes at the end, in milliseconds.
  private static let closeMillisecondsMax: Int32 = 2_000

  public init(_ policy: RemotePolicy) { self.policy = policy }

  public func recognises(_ name: String) -> Bool { NBDURI.looksLike(name) }

  public func open(
    _ address: String, namedBy overlay: String?, access: ImageFile.Access
  ) throws(ImageFault) -> LayerFile {
    let uri = try parse(address, overlay)
    if let overlay { try requireAllowed(uri, address, overlay) }
    do throws(NBDClientFault) {
      let storage = try ExportStorage.open(
        uri, access: access, secondsMax: policy.secondsMax)
      opened.withLock { $0.append(storage) }
      return LayerFile(storage, path: address)
    } catch {
      let wayOut =
        access == .readWrite && error == .refused("the export is read-only")
        ? "open it read-only" : "check that the server runs and has the export"
      guard let overlay else { throw ImageFault(address, "\(error)", wayOut: wayOut) }
      throw ImageFault(
        overlay, "its backing file \(address) cannot be opened (\(error))", wayOut: wayOut)
    }
  }

  /// Says goodbye to all servers.
  public func close() {
    for storage in opened.withLock({ $0 }) {
      // A server that does not listen any more misses nothing.
      do throws(SystemError) {
        try storage.close(milliseconds: Self.closeMillisecondsMax)
      } catch {}
    }
  }

  private func parse(_ address: String, _ overlay: String?) throws(ImageFault) -> NBDURI {
    do throws(NBDURIFault) {
      return try NBDURI(address)
    } catch {
      guard let overlay else { throw ImageFault(address, "\(error)", kind: .refused) }
      throw ImageFault(
        overlay, "its backing file '\(address)' is no right NBD URI: \(error)", kind: .refused)
    }
  }

  private func requireAllowed(
    _ uri: NBDURI, _ address: String, _ overlay: String
  ) throws(ImageFault) {
    let objection: String?
    do throws(ControlError) {
      objection = try policy.objection(to: uri)
    } catch {
      throw ImageFault(overlay, "\(error)", kind: .refused)
    }
    guard let objection else { return }
    throw ImageFault(
      overlay, "its backing file '\(address)' is not opened: \(objection)",
      wayOut: "if you trust it, say --allow-remote-base '\(address)'", kind: .refused)
  }
}

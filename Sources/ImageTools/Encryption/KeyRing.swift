// SPDX-License-Identifier: Apache-2.0
//
// Keys as they were read, and what they open. Reads files, and computes for seconds.

import BlockTypes
import Encryption
import LinuxIO
import Qcow2

/// Reads keys, each place once: a pipe tells its key one time.
public struct KeyReader {
  /// Bytes of a key.
  public static let byteCountMax = 8_192

  private var known: [KeySource.Place: SecretBytes] = [:]

  public init() {}

  /// The key at `source`. The memory of this process is nobody else's from then on.
  public mutating func read(_ source: KeySource) throws(ImageFault) -> SecretBytes {
    if let key = known[source.place] { return key }
    let key: SecretBytes
    do throws(SystemError) {
      try Environment.guardMemory()
      let room = SecretBytes(byteCount: KeyReader.byteCountMax)
      let count = try room.withMutableSpan { (bytes) throws(SystemError) in
        switch source.place {
        case .file(let path): try SmallFile.read(path, into: &bytes)
        case .descriptor(let number): try SmallFile.read(descriptor: number, into: &bytes)
        }
      }
      key = SecretBytes(prefix: count, of: room)
    } catch {
      throw ImageFault(source.description, "the key cannot be read: \(error)")
    }
    guard key.byteCount > 0 else {
      throw ImageFault(source.description, "the key is empty", kind: .refused)
    }
    known[source.place] = key
    return key
  }

  /// The keys for one chain.
  public mutating func ring(_ sources: [KeySource]) throws(ImageFault) -> KeyRing {
    var entries: [(layer: String?, key: SecretBytes)] = []
    for source in sources { entries.append((source.layer, try read(source))) }
    return KeyRing(entries: entries)
  }
}

/// The keys for the layers of one chain.
public struct KeyRing: Sendable {
  let entries: [(layer: String?, key: SecretBytes)]

  /// The key for the image at `path`: by path, by the file's name, or the one without a name.
  func key(forImageAt path: String) -> SecretBytes? {
    entryIndex(forImageAt: path).map { entries[$0].key }
  }

  private func entryIndex(forImageAt path: String) -> Int? {
    let name = path.split(separator: "/").last.map(String.init)
    return entries.firstIndex { $0.layer == path }
      ?? entries.firstIndex { $0.layer != nil && $0.layer == name }
      ?? entries.firstIndex { $0.layer == nil }
  }

  /// Opens the volume of an image whose header says that it is encrypted with LUKS.
  func open(_ storage: LayerFile, _ header: Header) throws(ImageFault) -> LUKSVolume {
    guard let key = key(forImageAt: storage.path) else {
      throw ImageFault(
        storage.path, "the image is encrypted (LUKS), and there is no key for it",
        wayOut: "name the file that has it (--key-file PATH, or --key-file IMAGE=PATH)",
        kind: .refused)
    }
    let start = try storage.encryptionStart(of: header)
    let volume = try LUKSVolume(
      opening: start.header, passphrase: key, fault: { ImageFault(storage.path, $0) },
      read: { (offset, byteCount) throws(ImageFault) in
        try storage.read(at: start.area.offset.byteOffset + offset, byteCount: byteCount)
      })
    guard let volume else {
      let count = start.header.slots.count(where: \.isActive)
      throw ImageFault(
        storage.path, "the key opens none of the \(count) key slots in use",
        wayOut: "check the key: all bytes of its file count, a line feed at the end, too",
        kind: .refused)
    }
    return volume
  }

  /// Throws when a key is for an image that the chain has not, or that is not encrypted.
  ///
  /// - Parameter mayBeIdle: a key without a name is for other chains, too.
  public func requireUse(in layers: [OpenedLayer], mayBeIdle: Bool) throws(ImageFault) {
    for (index, entry) in entries.enumerated() {
      guard entry.layer != nil || !mayBeIdle else { continue }
      let isUsed = layers.contains { layer in
        layer.cipher != nil && entryIndex(forImageAt: layer.path) == index
      }
      guard isUsed else {
        throw ImageFault(
          entry.layer ?? layers[0].path,
          entry.layer == nil
            ? "there is a key, but no encrypted image that it is for"
            : "there is a key for it, but no encrypted image of the chain has this name",
          wayOut: "leave out --key-file and --key-fd, or name the right image", kind: .refused)
      }
    }
  }
}

extension LayerFile {
  /// The LUKS header of an image, and where it is.
  func encryptionStart(
    of header: Header
  ) throws(ImageFault) -> (header: LUKSHeader, area: EncryptionExtension) {
    let area: EncryptionExtension?
    do throws(ImageError) { area = try header.encryptionArea() } catch {
      throw ImageFault(path, error)
    }
    guard let area else {
      preconditionFailure("an image that is not encrypted was asked for its encryption")
    }
    let bytes = try read(at: area.offset.byteOffset, byteCount: LUKSHeader.byteCount)
    do throws(ImageError) {
      return (try LUKSHeader(decoding: bytes, areaByteCount: area.byteCount), area)
    } catch {
      throw ImageFault(path, error)
    }
  }
}

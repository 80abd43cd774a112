// SPDX-License-Identifier: Apache-2.0
//
// The entries of an L2 table that was read whole, be they of 8 or of 16 bytes.
// Spec: qcow2.rst, "L2 table entry", "Extended L2 Entries". This file performs no I/O.

/// An L2 table as 64-bit words; words that its file does not have are zero.
public struct L2TableWords {
  private let words: [UInt64]
  private let geometry: ClusterGeometry
  private let version: Int

  public init(_ words: [UInt64], _ header: Header) {
    self.words = words
    geometry = header.geometry
    version = header.version
  }

  /// Entries of which the words hold something.
  public var entryCount: Int { (words.count + wordsPerEntry - 1) / wordsPerEntry }

  /// Words of one entry.
  private var wordsPerEntry: Int { geometry.l2EntryByteCount / 8 }

  /// Index of the word that holds the descriptor of an entry.
  public func wordIndex(_ index: Int) -> Int { index * wordsPerEntry }

  /// The entry, or the first half of an extended one.
  public func descriptor(_ index: Int) -> L2Entry {
    L2Entry(rawValue: words[wordIndex(index)])
  }

  private func bitmap(_ index: Int) -> SubclusterBitmap {
    let word = wordIndex(index) + 1
    return SubclusterBitmap(rawValue: word < words.count ? words[word] : 0)
  }

  /// Whether nothing is said of the cluster.
  func isEmpty(_ index: Int) -> Bool {
    descriptor(index) == .unallocated && (!geometry.hasSubclusters || bitmap(index) == .none)
  }

  /// What the entry says of its cluster. `normal` clusters of images with subclusters may have some
  /// that are elsewhere, `unallocated` ones some that read as zeroes.
  func kind(_ index: Int) -> L2Entry.Kind {
    guard geometry.hasSubclusters else {
      return descriptor(index).kind(in: geometry, version: version)
    }
    return ExtendedL2Entry(descriptor(index), bitmap(index)).clusterKind(in: geometry)
  }

  /// For a finding.
  func text(of index: Int) -> String {
    let descriptor = "0x" + String(descriptor(index).rawValue, radix: 16)
    guard geometry.hasSubclusters else { return descriptor }
    return descriptor + " with the bitmap 0x" + String(bitmap(index).rawValue, radix: 16)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What a seed decides about a simulation before it begins: the images, the requests, the faults,
// and what the schedule holds up. Features of the format join here, by name, when they are served.

import BlockTypes
import ImageTools
import LinuxIO

/// The images and habits of one simulation.
struct Scenario {
  enum Base: CaseIterable { case none, raw, qcow2, chain }

  /// Seeds that have something in common, which they do not leave to chance.
  enum Family: String, CaseIterable {
    /// All is left to the seed.
    case drawn
    /// What is written is compressed.
    case compress
    /// The disk punches no holes, so that freed clusters keep what they held.
    case unpunched
    /// The refcount table has to move under load.
    case outgrown
    /// Snapshots come and go while the disk is in use.
    case snapshots
  }

  /// What the schedule keeps back until nothing else can move (or its patience ends): the named
  /// points at which orders of events that never happen by themselves do.
  enum Hold: CaseIterable {
    case nothing
    /// A discard between the table that forgot its clusters and the hole in the file, while
    /// others flush and allocate.
    case punch
    /// A flush between its steps.
    case flushStep
    /// The loading of a table.
    case tableLoad
    /// The bytes of new clusters.
    case bigWrite
    /// The growth of the file.
    case growth
  }

  /// `-o` options of create.
  var options = "cluster_size=4096"
  var clusterByteCount: UInt64 = 4096
  var base = Base.none
  var diskByteCount: UInt64 = 1 << 20
  var baseByteCount: UInt64 = 1 << 20
  /// The alignment of the disk's operations: 1 is a page cache.
  var blockByteCount: UInt64 = 512
  var cacheByteCount = 0
  var requestCount = 0
  var requestsAtOnceMax = 1
  var hold = Hold.nothing
  /// Of 1,000 operations, how many fail; how many are short.
  var failuresPerThousand = 0
  var shortsPerThousand = 0
  var resizes = false
  /// Whole clusters that are written are compressed; a family of its own beside what seeds decide.
  var compresses = false
  /// Extended L2 entries, from clusters of 16 KiB on.
  var hasSubclusters = false
  /// Some clusters that the image begins with are packed, two in a cluster where counts allow it.
  var hasPackedClusters = false
  /// Internal snapshots that the image begins with: its clusters are shared.
  var snapshotCount = 0
  /// A snapshot is taken and another one deleted at the end, with cuts.
  var changesSnapshots = false
  /// Bitmaps that the image keeps, and changes of them between the requests.
  var bitmapCount = 0
  /// The guest's data lies in a file of its own.
  var hasDataFile = false
  /// The guest's data is encrypted.
  var isEncrypted = false
  /// Requests begin and end at multiples of this.
  var requestUnit: UInt64 = 512
  /// The longest request, in clusters.
  var requestClusterCountMax: UInt64 = 4
  /// The disk has neither holes nor space ahead: freed clusters keep what they held.
  var punchesHoles = true
  /// Leaked clusters fill the file nearly as far as its refcount table counts.
  var isOutgrown = false
  /// Snapshots are taken and deleted between the requests.
  var hasLiveSnapshots = false

  /// What all seeds of the family have; the rest stays as the seed has it.
  mutating func join(_ family: Family) {
    switch family {
    case .drawn: break
    case .compress: compress()
    case .unpunched:
      leaveHolesAlone()
      requestCount += 30
    case .outgrown: outgrow()
    case .snapshots: takeSnapshots()
    }
  }

  /// Whole small clusters, so that trims free many and many tables are new.
  private mutating func leaveHolesAlone() {
    punchesHoles = false
    hasDataFile = false
    setClusters(ofByteCount: 512)
  }

  /// One cluster of table with counts of 64 bits, which covers a file of 2 MiB.
  private mutating func outgrow() {
    options = "cluster_size=512,refcount_bits=64"
    setClusters(ofByteCount: 512)
    hasDataFile = false
    isOutgrown = true
    requestClusterCountMax = 64
    resizes = false
  }

  private mutating func setClusters(ofByteCount byteCount: UInt64) {
    options = options.replacing(
      "cluster_size=\(clusterByteCount)", with: "cluster_size=\(byteCount)")
    clusterByteCount = byteCount
    blockByteCount = min(blockByteCount, byteCount)
    hasSubclusters = false
    diskByteCount = 400 * byteCount
    baseByteCount = min(baseByteCount, 500 * byteCount)
    if compresses || requestUnit > 512 { requestUnit = byteCount }
  }

  private mutating func takeSnapshots() {
    hasLiveSnapshots = true
    options = "cluster_size=\(clusterByteCount)"
    hasDataFile = false
    // Storage that is written in blocks is refused, and so is a resize with version 2.
    blockByteCount = 1
    requestCount += 20
  }

  /// Compresses what is written, mostly in whole clusters.
  private mutating func compress() {
    compresses = true
    // Neither is compressed.
    isEncrypted = false
    hasDataFile = false
    requestUnit = clusterByteCount
    requestCount += 20
  }

  /// A plain image on which nothing is asked for.
  init() {}

  init(_ random: inout SeededRandom) {
    let clusterBits = random.pick([9, 9, 9, 10, 12, 12, 14, 14, 16])
    clusterByteCount = 1 << UInt64(clusterBits)
    var options = "cluster_size=\(clusterByteCount)"
    let bits = random.pick([16, 16, 16, 64, 64, 32, 8, 4, 2, 1])
    if random.chance(15) {
      options += ",compat=0.10"
    } else {
      if bits != 16 { options += ",refcount_bits=\(bits)" }
      if random.chance(15) { options += ",lazy_refcounts=on" }
    }
    self.options = options
    hasSubclusters = clusterBits >= 14 && !options.contains("compat") && random.chance(60)
    base = random.pick(Base.allCases)
    let clusters = UInt64(random.pick([40, 100, 200, 400]))
    diskByteCount =
      min(clusters * clusterByteCount, 1 << 20)
      - (random.chance(30) ? 512 : 0)
    baseByteCount = (diskByteCount * UInt64(random.pick([3, 4, 5])) / 4).alignedDown(to: 512)
    // No block is larger than what has a place of its own.
    let blocks: [UInt64] = clusterBits < 12 || hasSubclusters ? [1, 512] : [1, 512, 4096]
    blockByteCount = random.pick(blocks)
    requestCount = random.pick([15, 30, 60])
    requestsAtOnceMax = random.pick([1, 3, 8])
    hold = random.chance(40) ? .nothing : random.pick(Hold.allCases)
    failuresPerThousand = random.chance(25) ? random.pick([3, 20, 100]) : 0
    shortsPerThousand = random.chance(25) ? random.pick([20, 200]) : 0
    resizes = random.chance(20)
    requestUnit = random.chance(25) ? GuestModel.unitByteCount : 512
    chooseFeatures(&random, isOld: options.contains("compat"), countBits: bits)
  }

  /// What the format can do besides; what excludes each other as in the product.
  private mutating func chooseFeatures(
    _ random: inout SeededRandom, isOld: Bool, countBits: Int
  ) {
    let bits = isOld ? 16 : countBits
    if !isOld, random.chance(15) {
      hasDataFile = true
      isEncrypted = random.chance(30)
      return
    }
    if random.chance(15) { isEncrypted = true }
    hasPackedClusters = !isEncrypted && random.chance(30)
    // A count of two bits has room for three.
    if bits > 1, random.chance(35) { snapshotCount = bits == 2 ? 1 : random.pick([1, 1, 2]) }
    changesSnapshots = snapshotCount == 1 && bits > 2 && !isOld && random.chance(50)
    // What changes sizes does not change them under snapshots of version 2.
    if isOld, snapshotCount > 0 { resizes = false }
    // Beside snapshots they do not survive a crash.
    if !isOld, random.chance(35), snapshotCount == 0 { bitmapCount = random.pick([1, 1, 2]) }
    punchesHoles = !random.chance(10)
    // Counts of 8 bits have room for all that come.
    hasLiveSnapshots = !isOld && bits >= 8 && blockByteCount == 1 && random.chance(30)
    if clusterByteCount == 512, bits == 64, !isOld, random.chance(30) { outgrow() }
  }

  /// Whether the image holds something of its own before the first request.
  var isPrefilled: Bool {
    hasPackedClusters || snapshotCount > 0 || isEncrypted || hasDataFile || bitmapCount > 0
      || isOutgrown
  }
}

extension Scenario: CustomStringConvertible {
  var description: String {
    var text = "\(options), disk \(diskByteCount), base \(base), blocks of \(blockByteCount)"
    text += ", \(requestCount) requests, \(requestsAtOnceMax) at once, holds \(hold)"
    if hasSubclusters { text += ", subclusters" }
    if hasPackedClusters { text += ", packed clusters" }
    if snapshotCount > 0 { text += ", \(snapshotCount) snapshots" }
    if changesSnapshots { text += " and another" }
    if bitmapCount > 0 { text += ", \(bitmapCount) bitmaps" }
    if hasDataFile { text += ", a data file" }
    if isEncrypted { text += ", encrypted" }
    if compresses { text += ", compressing" }
    if hasLiveSnapshots { text += ", snapshots meanwhile" }
    if !punchesHoles { text += ", no holes" }
    if isOutgrown { text += ", a table nearly full" }
    if failuresPerThousand > 0 { text += ", \(failuresPerThousand)/1000 fail" }
    if shortsPerThousand > 0 { text += ", \(shortsPerThousand)/1000 are short" }
    return text
  }
}

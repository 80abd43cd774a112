# SPDX-License-Identifier: Apache-2.0
"""Faults that tools/simulate --mutants puts into the data plane, to see that the simulation finds each of them.

A mutant is a file below Sources/DataPlane/Image and pieces of text with what replaces them. One whose text is not there
any more is a mistake of this list, and is said.
"""
import collections

# `words` go to the simulation: which family of seeds has to notice it.
Mutant = collections.namedtuple("Mutant", "name file changes words", defaults=((),))
PACKS = ("compress",)

MUTANTS = [
    Mutant("counts are written with the tables that the disk knows", "Flush.swift", [
        ("      cache.pages[page].kind == .l2\n      &&", "      cache.pages[page].kind == .refcount\n      || cache.pages[page].kind == .l2 &&")]),
    Mutant("new tables are written with the L1 table", "Flush.swift", [
        ("      && !flush.installedTables.contains(Int(cache.pages[page].l1Index))\n", "")]),
    Mutant("the first step of a flush is not synchronised", "Flush.swift", [
        ("    } else if flush.nextCopy == count, disks.hasRoom {\n",
         "    } else if flush.nextCopy == count, flush.phase == .unreferenced, !flush.referenced.isEmpty {\n"
         "      nextPhase()\n      pumpFlush()\n    } else if flush.nextCopy == count, disks.hasRoom {\n")]),
    Mutant("a flush forgets that its tables may be on the disk after it failed", "Flush.swift", [
        ("if flush.phase == .referenced {\n        flush.doubtfulTables.formUnion(flush.sealedTables)",
         "if flush.phase == .idle {\n        flush.doubtfulTables.formUnion(flush.sealedTables)")]),
    Mutant("clusters are released before the table that forgot them is durable", "Release.swift", [
        ("      releases.add(\n        cluster: entry.hostOffset.byteOffset >> bits, count: 1,",
         "      releases.addUnmapped(\n        cluster: entry.hostOffset.byteOffset >> bits, count: 1,")]),
    Mutant("clusters are released under those who still use them", "Release.swift", [
        ("oldest <= run.lastUser {", "oldest <= run.lastUser, run.count == 0 {")]),
    Mutant("a count is lowered before the hole is punched", "Release.swift", [
        ("      if last > 0, startPunch(index, run.cluster, last) { return .waits }\n",
         "      if last > 0, startPunch(index, run.cluster, last) {\n"
         "        lowerCounts(page, place, Int(last))\n        releases.punchedCount = 0\n        releases.isPunching = false\n"
         "        releases.skip(last)\n        allocator.searchCluster = min(allocator.searchCluster, run.cluster)\n"
         "        return .waits\n      }\n")]),
    Mutant("clusters are mapped before their bytes are written", "Write+Allocation.swift", [
        ("    requests.slots[index].clusterWriteCount += 1\n    requests.slots[index].stage = .writingClusters\n    return .waits\n",
         "    requests.slots[index].clusterWriteCount += 1\n    requests.slots[index].stage = .committing\n    return .more\n")]),
    Mutant("FUA trusts a mapping that is not durable", "Write.swift", [
        ("isDurable: isDurable && isSettled,", "isDurable: isDurable,"),
        ("    if isDurable && !isSettled { requests.slots[index].needsFlush = true }\n", "")]),
    Mutant("the larger size is durable before what the disk grew by is zero", "Resize.swift", [
        ("    case .securingZeroes: return secure(index, then: .committing)",
         "    case .securingZeroes:\n      resize.step = .committing\n      return .more")]),
    Mutant("a moved refcount table names blocks that are not written", "RefcountTableGrowth.swift", [
        ("    let failure = writeDirtyRefcountPagesNow()\n    if failure != .none { return failure }\n", "")]),
    Mutant("a hole in the fill is left as it is on clusters that were used before", "Write+Joining.swift", [
        ("let isFresh = allocation.isFresh", "let isFresh = true")]),
    Mutant("unaligned writes share blocks", "Claim.swift", [
        ("if isSerialising || serialisingClaimCount > 0, hasConflict(index, isSerialising) {",
         "if isSerialising, serialisingClaimCount > 99, hasConflict(index, isSerialising) {")]),
    Mutant("packed bytes go where a hole is being punched", "Release.swift", [
        ("    forgetPackedTail(in: cluster..<cluster + count)\n", "")], PACKS),
    Mutant("a host cluster does not count each packed cluster", "Write+Packed.swift", [
        ("      if host < untouched { raiseCount(host) }\n", "")], PACKS),
    Mutant("a packed cluster forgets its neighbour's bytes in the same block", "Write+Packed.swift", [
        ("if head > 0 {", "if head > 0, false {")], PACKS),
    Mutant("two packed clusters are written to one block at once", "Write+Packed.swift", [
        ("let isBusy = allocator.packedTail.writer >= 0", "let isBusy = false")], PACKS),
    Mutant("host clusters that were taken in vain for packed ones are kept", "Write+Packed.swift", [
        ("if untouched < takenEnd {", "if untouched < takenEnd, false {")], PACKS),
]

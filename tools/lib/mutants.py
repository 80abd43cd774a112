# SPDX-License-Identifier: Apache-2.0
"""Faults that tools/simulate --mutants puts into the data plane, to see that the simulation finds each of them.

A mutant is a file below Sources/DataPlane/Image and pieces of text with what replaces them. One whose text is not there
any more is a mistake of this list, and is said.

Equivalent, and so not among them: writing new L2 tables with the L1 table, in step 3 of a flush, and not in step 1. A new
table is written before its L1 entry is changed in memory (Write+Table.swift): with zeroes, or as the shared table's copy;
a cluster that is fresh reads as zeroes. The sync of step 1 makes that durable before any L1 entry that names it is
written. A cut in step 3 then leaves a table of zeroes, the copy, or sectors of the new one: what it lacks was never
durable, what it still maps is released after step 3 only, and what it maps anew was counted in step 1.
"""
import collections

# `words` go to the simulation: which family of seeds has to notice it.
Mutant = collections.namedtuple("Mutant", "name file changes words", defaults=((),))
PACKS, UNPUNCHED, OUTGROWN = ("compress",), ("unpunched",), ("outgrown",)

MUTANTS = [
    Mutant("counts are written with the tables that the disk knows", "Flush.swift", [
        ("      cache.pages[page].kind == .l2\n      &&", "      cache.pages[page].kind == .refcount\n      || cache.pages[page].kind == .l2 &&")]),
    Mutant("a new table begins with what its cluster held before", "Write+Table.swift", [
        ("if old.isEmpty && isFresh { return installTable(index) }", "if old.isEmpty { return installTable(index) }")],
        UNPUNCHED),
    Mutant("the first step of a flush is not synchronised", "Flush.swift", [
        ("    } else if flush.nextCopy == count, disks.availableCount > 1 {\n",
         "    } else if flush.nextCopy == count, flush.phase == .unreferenced, !flush.referenced.isEmpty {\n"
         "      nextPhase()\n      pumpFlush()\n    } else if flush.nextCopy == count, disks.availableCount > 1 {\n")]),
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
        ("    let failure = writeDirtyRefcountPagesNow()\n    if failure != .none { return failure }\n", "")], OUTGROWN),
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

# SPDX-License-Identifier: Apache-2.0
"""Which states a power cut can leave of what a server wrote: tools/powercut has each of them judged.

Every prefix of the log, and of what was written between two flushes any part, in any order, with torn writes.
"""
import collections
import random

from nbdload import SECTOR
from recorder import FLUSH, FUA


class Report:
    """Counts of a part of the states."""

    def __init__(self):
        self.codes = {"prefix": collections.Counter(), "reorder": collections.Counter()}
        self.failures, self.distinct, self.asked = [], 0, collections.Counter()

    def note(self, mode, result, distinct):
        code, trouble = result
        self.codes[mode][code] += 1
        self.distinct += distinct
        if trouble:
            self.failures.append(trouble)

    def add(self, other):
        for mode, counter in other.codes.items():
            self.codes[mode] += counter
        self.failures += other.failures
        self.distinct += other.distinct
        self.asked += other.asked

    def states(self):
        return sum(sum(counter.values()) for counter in self.codes.values())


def judge_all(args, recording, judge):
    """Judges all states of a recording: each prefix of its log, then reorders between flushes."""
    report, entries, first = Report(), recording.entries, recording.first
    judge.begin()
    applied = 0
    for cut in range(first, len(entries) + 1, args.stride):
        for entry in entries[applied:cut]:
            judge.state.apply(entry)
        applied = cut
        is_new = judge.is_new()
        report.note("prefix", judge.judge(f"prefix {cut}", cut), is_new)

    judge.begin()
    applied = 0
    for low, high, kept, pending in intervals(entries, first):
        for entry in entries[applied:low]:
            judge.state.apply(entry)
        applied = low
        # the cut may come as late as just before the flush that ends the interval
        promised, known = high - 1, {}
        for turn in range(args.reorders if pending else 0):
            chance = random.Random(f"{recording.cell} {low} {high} {turn}")
            undo = []
            for entry in kept:
                judge.state.apply(entry, undo)
            for entry in scrambled(pending, chance):
                sectors = 0 if entry.start % SECTOR or entry.flags & FUA else entry.length // SECTOR
                if sectors > 1 and chance.random() < args.torn:
                    head = chance.randrange(1, sectors)
                    start = chance.choice([0, head])
                    judge.state.apply(entry, undo, start, head if start == 0 else None)
                else:
                    judge.state.apply(entry, undo)
            is_new, state = judge.is_new(), judge.state.hash
            if state not in known:
                known[state] = judge.judge(f"reorder {low}..{high} #{turn}", promised)
            report.note("reorder", known[state], is_new)
            judge.state.undo(undo)
    report.asked = collections.Counter(loads=judge.loads, checks=judge.checks, skipped=judge.skipped)
    return report


def intervals(entries, first):
    """(low, high, kept, pending) for each flush and for the log's end, where a cut may come just before it.

    Everything before `low` is durable, and so are the entries in `kept`; those in `pending` may be there or not. A
    flush is a barrier for its own file only: what another file has not flushed stays pending.
    """
    # a file that is only read, as a base is, waits for no flush
    flushed = {entry.file: first for entry in entries[first:]} or {None: first}
    ends = [i for i, entry in enumerate(entries) if i >= first and entry.flags & FLUSH]
    if not ends or ends[-1] != len(entries) - 1:
        ends.append(len(entries))
    for end in ends:
        low = min(flushed.values())
        is_kept = [(entry, low + place < flushed[entry.file]) for place, entry in enumerate(entries[low:end])
                   if entry.length]
        yield (low, end + 1, [entry for entry, kept in is_kept if kept],
               [entry for entry, kept in is_kept if not kept])
        if end < len(entries):
            flushed[entries[end].file] = end + 1


def scrambled(entries, chance):
    """What of `entries` is on the disk, in which order: a random part of them in random order.

    Sometimes it is all but one, sometimes only one. A write with FUA is always there, and what came
    before it does not overtake it; two entries that do not overlap have no order anyway.
    """
    kind, share = chance.random(), chance.random()
    odd = chance.choice(entries)
    files = {entry.file for entry in entries}
    if len(files) > 1 and chance.random() < 0.2:         # all of one file and nothing of the others
        kept = chance.choice(sorted(files))
        return [entry for entry in entries if entry.file == kept or entry.flags & FUA]
    order, group = [], []
    for entry in [*entries, None]:
        if entry is None or entry.flags & FUA:
            chance.shuffle(group)
            order += group if entry is None else [*group, entry]
            group = []
        elif kind < 0.2 and entry is not odd or 0.2 <= kind < 0.4 and entry is odd \
                or kind >= 0.4 and chance.random() < share:
            group.append(entry)
    return order

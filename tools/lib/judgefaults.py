# SPDX-License-Identifier: Apache-2.0
"""Recordings with known faults, each of which the judge of tools/powercut has to notice: what --self-test asks of it.

Every question of powercutjudge.py, keptbitmaps.py and livesnapshots.py is failed once here, and every exception that it
makes is claimed once. An image that QEMU made is the disk; a few lines stand for the server: they write data where the
image has it, or break a table, and say what they promised.
"""
import json
import os
import re
import shutil
import struct
import subprocess
import types

import livesnapshots
import nbdload
from keptbitmaps import COMPLETE
from nbdload import SECTOR, ZERO, sector_content
from powercutjudge import Judge, Tools
from powercutstates import judge_all
from recorder import FLUSH, FUA, Entry

CLUSTER, SIZE, LONG = 4096, 256 << 10, 512 << 10
IMAGE, DATA = 2, 3
FIRST = 1                                         # the version of every sector before the first request
ALL = f"0 {SIZE}\n"                               # what `strata bitmap map` prints of a bitmap that covers everything
BITMAPS = 0x23852875                              # header extension
CHOICES = types.SimpleNamespace(stride=1, reorders=6, torn=0.15)


class Disk:
    """A recording that nobody recorded: what a server would have written, and what it promised."""

    def __init__(self, folder, kind):
        self.folder, self.cell = folder, kind
        self.names, self.content = {IMAGE: "image"}, {IMAGE: bytearray(read(folder, kind))}
        self.window, self.size, self.is_encrypted = (0, SIZE // 2), SIZE, False
        self.has_raw_data = kind == "raw-data"
        if self.has_raw_data:
            self.names[DATA], self.content[DATA] = "data", bytearray(read(folder, "data"))
        self.oracle = nbdload.Oracle(lambda sector: FIRST)
        self.first, self.entries, self.marks, self.issues, self.sizes = len(self.names), [], [], [], [SIZE]
        self.verbs = types.SimpleNamespace(snapshots=[])
        self.has_bitmaps, self.keeps_bitmaps, self.strata_says = False, True, (0, ALL)

    # What Judge asks of a recording.

    def path(self, name):
        return os.path.join(self.folder, name)

    @property
    def file_sizes(self):
        return {file: len(content) for file, content in self.content.items()}

    def durable_at(self, entry_count):
        return next((durable for count, durable in reversed(self.marks) if count <= entry_count), {})

    def issued_at(self, entry_count):
        return sum(count < entry_count for count in self.issues)

    def sizes_at(self, _):
        return self.sizes

    def keeps_bitmaps_at(self, _):
        return self.keeps_bitmaps

    # Where things are in the image (qcow2.rst).

    def number(self, offset, form=">Q"):
        return struct.unpack_from(form, self.content[IMAGE], offset)[0]

    def l2_entry(self, sector):
        return (self.number(self.number(40)) & 0x00FFFFFFFFFFFE00) + sector * SECTOR // CLUSTER * 8

    def place(self, sector):
        if self.has_raw_data:
            return sector * SECTOR
        return (self.number(self.l2_entry(sector)) & 0x00FFFFFFFFFFFE00) + sector * SECTOR % CLUSTER

    def counts(self):
        return self.number(self.number(48))

    def bitmap_entry(self):
        return self.number(self.content[IMAGE].index(struct.pack(">I", BITMAPS), 72) + 24)

    # What a server does. `sectors` lie in one cluster.

    def put(self, offset, data, flags=0, file=IMAGE):
        self.entries.append(Entry(offset, len(data), flags, bytes(data), file))

    def put_number(self, offset, value, form=">Q"):
        self.put(offset, struct.pack(form, value))

    def put_versions(self, sectors, version, flags=0):
        self.put(self.place(sectors[0]), b"".join(sector_content(s, version) for s in sectors), flags,
                 DATA if self.has_raw_data else IMAGE)

    def issue(self, sectors, versions):
        self.issues.append(len(self.entries))
        return self.oracle.issue(sectors, versions)

    def promise(self):
        self.marks.append((len(self.entries), dict(self.oracle.durable)))

    def write(self, sectors, version, fua=False, is_kept=True):
        """`is_kept`: with FUA, whether it is durable as promised."""
        ticket = self.issue(sectors, frozenset([version]) if version else ZERO)
        self.put_versions(sectors, version, FUA if fua and is_kept else 0)
        self.oracle.acknowledge(ticket, fua)
        if fua:
            self.promise()

    def trim(self, sectors, becomes, fua=False, is_kept=True, found=None):
        """`becomes`: the version that it leaves, None: nothing happens. `found`: what a READ finds then."""
        ticket = self.issue(sectors, None)
        if becomes is not None:
            self.put_versions(sectors, becomes, FUA if fua and is_kept else 0)
        self.oracle.acknowledge(ticket, fua)
        if found is not None:
            self.oracle.settle(ticket, [found] * len(sectors), fua)
        if fua:
            self.promise()

    def flush(self, is_done=True):
        covered = self.oracle.begin_flush()
        if is_done:
            for file in self.names:
                self.entries.append(Entry(0, 0, FLUSH, b"", file))
        self.oracle.end_flush(covered)
        self.promise()


def read(folder, name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


def make_images(folder):
    """The images, by their kinds. All hold the version FIRST everywhere."""
    def run(*words):
        subprocess.run(words, check=True, timeout=60, cwd=folder, capture_output=True)

    for name, size in (("flat", SIZE), ("long-flat", LONG)):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"".join(sector_content(sector, FIRST) for sector in range(size // SECTOR)))
    plain = f"cluster_size={CLUSTER}"
    for kind, flat, options in (("plain", "flat", plain), ("long", "long-flat", plain),
                                ("raw-data", "flat", plain + ",data_file=data,data_file_raw=on")):
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, flat, kind)
    for kind, words in (("snapshot", ("snapshot", "-c", "live0")), ("bitmap", ("bitmap", "--add", "-g", "4096"))):
        shutil.copyfile(os.path.join(folder, "plain"), os.path.join(folder, kind))
        run("qemu-img", *words, kind, *(["b0"] if kind == "bitmap" else []))


A, B, C = range(0, 8), range(8, 16), range(16, 24)


def honest(disk):
    """A bit of everything, as it has to be."""
    disk.write(A, 2)
    disk.write(B, 3, fua=True)
    disk.flush()
    disk.write(A, 4)
    disk.trim(B, 0, found=0)
    disk.write(C, 5)
    disk.trim(C, None, fua=True, found=5)
    disk.flush()
    disk.trim(A, 0, fua=True, found=0)
    disk.write(C, 0)
    disk.write(A, 6, fua=True)


def flush_of_nothing(disk):
    disk.write(A, 2)
    disk.flush(is_done=False)
    disk.write(B, 3)


def fua_of_nothing(disk):
    disk.write(A, 2, fua=True, is_kept=False)


def fua_trim_of_nothing(disk):
    disk.write(A, 2)
    disk.flush()
    disk.trim(A, 0, fua=True, is_kept=False, found=0)


def old_data_behind_a_trim(disk):
    disk.write(A, 2)
    disk.flush()
    disk.write(A, 3)
    disk.flush()
    disk.trim(A, 2, fua=True)


def answer_before_the_write(disk):
    disk.oracle.acknowledge(disk.issue(A, frozenset([2])))
    disk.flush()
    disk.put_versions(A, 2)


def zeroes_before_they_were_asked_for(disk):
    disk.write(A, 2)
    disk.flush()
    disk.put_number(disk.l2_entry(0), 0)
    disk.write(B, 3)
    disk.write(A, 0)


def other_sector(disk):
    disk.put_versions(C, 2)


def behind_the_window(disk):
    disk.content[IMAGE][disk.place(SIZE // SECTOR - 1)] ^= 1


def garbage(disk):
    disk.write(A, 2)
    disk.put(disk.place(1), sector_content(9, 9))


def lost_counts(disk):
    disk.put(disk.counts(), bytes(CLUSTER))


def torn_counts(disk):
    disk.put(disk.counts(), bytes(64))


def lost_counts_of_a_dirty_image(disk):
    disk.content[IMAGE][79] |= 1
    disk.put(disk.counts(), bytes(CLUSTER))


def leak(disk):
    disk.put_number(disk.counts() + 2 * (len(disk.content[IMAGE]) // CLUSTER), 1, ">H")


def unreadable(disk):
    entry = disk.l2_entry(0)
    disk.put_number(entry, 1 << 62 | 7 << 58 | disk.number(entry) & 0x00FFFFFFFFFFFE00)


def lost_header(disk):
    disk.put(0, bytes(SECTOR))


def smaller(disk):
    disk.put_number(24, SIZE - SECTOR)


def larger(disk):
    disk.put_number(24, SIZE + SECTOR)


def grown_over_old_data(disk):
    disk.content[IMAGE][24:32] = struct.pack(">Q", SIZE)
    disk.sizes = [SIZE, LONG]
    disk.put_number(24, LONG)


def zeroes_in_the_mapping_only(disk):
    disk.oracle.acknowledge(disk.issue(A, ZERO))
    disk.put_number(disk.l2_entry(0), disk.number(disk.l2_entry(0)) | 1)
    disk.flush()


def one_file_flushed(disk):
    disk.write(A, 2)
    covered = disk.oracle.begin_flush()
    disk.entries.append(Entry(0, 0, FLUSH, b"", IMAGE))
    disk.oracle.end_flush(covered)
    disk.promise()
    disk.write(B, 3)


def taken(disk, **times):
    """A snapshot of the disk as it is for the client."""
    load = types.SimpleNamespace(oracle=disk.oracle, busy={})
    disk.verbs.snapshots.append(livesnapshots.Snapshot("live0", load))
    disk.verbs.snapshots[0].__dict__.update(times)


def kept_snapshot(disk):
    taken(disk, taken=1)
    leak(disk)


def lost_snapshot(disk):
    taken(disk, taken=1)
    disk.write(A, 2)


def deleted_snapshot(disk):
    taken(disk, taken=1, deleting=1)
    disk.write(A, 2)


def old_snapshot(disk):
    disk.oracle.acknowledge(disk.issue(A, frozenset([2])))
    taken(disk, taken=1)


def changed_snapshot(disk):
    taken(disk, taken=1)
    for turn in range(48):
        disk.write(A, turn + 2)


def with_bitmap(disk, says=(0, ALL), keeps=True, is_in_use=True):
    disk.has_bitmaps, disk.strata_says, disk.keeps_bitmaps = True, says, keeps
    if is_in_use:
        disk.content[IMAGE][disk.bitmap_entry() + 15] |= 1
    disk.write(A, 2)
    disk.put_number(disk.counts() + 2 * (len(disk.content[IMAGE]) // CLUSTER), 1, ">H")


UNUSABLE = (1, 'image: bitmap "b0" cannot be used: it is in use\n')


def bit_beside_snapshots(disk):
    disk.has_bitmaps = True
    disk.put_number(88, COMPLETE)


# name, image, what the server did, what the judge has to say (None: nothing)
RECORDINGS = [
    ("all as promised", "plain", honest, None),
    ("a flush that does nothing", "plain", flush_of_nothing, "sectors are wrong"),
    ("FUA that does nothing", "plain", fua_of_nothing, "sectors are wrong"),
    ("FUA on a trim that does nothing", "plain", fua_trim_of_nothing, "holds version 2, allowed .0."),
    ("a trim that brings back older bytes", "plain", old_data_behind_a_trim, "holds version 2, allowed .0, 3."),
    ("a write that is answered and flushed before it is made", "plain", answer_before_the_write, "holds version 1"),
    ("zeroes before they were asked for", "plain", zeroes_before_they_were_asked_for, "holds version 0, allowed .2."),
    ("a sector that nobody wrote", "plain", other_sector, "which was never written, has changed"),
    ("a sector behind the window", "plain", behind_the_window, "^prefix 1: a sector that was never written"),
    ("bytes of another sector", "plain", garbage, "sector 1 holds what looks like sector 9 version 9"),
    ("counts that are lost", "plain", lost_counts, "qemu-img check exits with [23]"),
    ("counts that are torn", "plain", torn_counts, "qemu-img check exits with [23]"),
    ("counts that are lost in an image marked dirty", "plain", lost_counts_of_a_dirty_image, None),
    ("a leaked cluster", "plain", leak, None),
    ("a cluster that cannot be read", "plain", unreadable, "QEMU cannot read at 0"),
    ("a header that is lost", "plain", lost_header, "qemu-img check exits with 1"),
    ("a smaller disk", "plain", smaller, f"the disk has {SIZE - SECTOR} bytes"),
    ("a size that nobody asked for", "plain", larger, f"the disk has {SIZE + SECTOR} bytes"),
    ("old data where the disk grew", "long", grown_over_old_data, "what the disk grew by is not zero"),
    ("all as promised, with a data file", "raw-data", honest, None),
    ("zeroes that a raw data file lacks", "raw-data", zeroes_in_the_mapping_only, "in the raw data file: 8 sectors"),
    ("a data file that is not flushed", "raw-data", one_file_flushed, "sectors are wrong"),
    ("a snapshot that stays", "snapshot", kept_snapshot, None),
    ("a snapshot that is lost", "plain", lost_snapshot, "snapshot live0 is lost"),
    ("a snapshot that is being deleted", "plain", deleted_snapshot, None),
    ("a snapshot without an answered write", "snapshot", old_snapshot, "live0 holds in sector 0 what the disk did not"),
    ("a snapshot that writes go through to", "snapshot", changed_snapshot, "live0 (differs from|holds in sector 0)"),
    ("a bitmap that covers", "bitmap", with_bitmap, None),
    ("a bitmap that is narrower for us", "bitmap", lambda disk: with_bitmap(disk, (0, "4096 4096\n")),
     "does not cover sector 0, which has changed .strata"),
    ("a bitmap that is narrower for us beside snapshots", "bitmap",
     lambda disk: with_bitmap(disk, (0, ""), keeps=False), "does not cover sector 0, which has changed .strata"),
    ("a bitmap that is narrower for QEMU", "bitmap", lambda disk: with_bitmap(disk, is_in_use=False),
     "does not cover sector 0, which has changed .QEMU"),
    ("a bitmap that is narrower for QEMU, and unusable for us", "bitmap",
     lambda disk: with_bitmap(disk, UNUSABLE, keeps=False, is_in_use=False), "does not cover sector 0.*QEMU believes"),
    ("a bitmap that is lost", "bitmap", lambda disk: with_bitmap(disk, UNUSABLE), "the bitmap is lost: .*it is in use"),
    ("a bitmap that is lost beside snapshots", "bitmap", lambda disk: with_bitmap(disk, UNUSABLE, keeps=False), None),
    ("a bitmap that nobody lists", "plain", lambda disk: with_bitmap(disk, is_in_use=False), "QEMU sees no bitmap b0"),
    ("a tool that fails", "bitmap", lambda disk: with_bitmap(disk, (1, "no such image")), "strata bitmap map exits with 1"),
    ("a tool that dies", "bitmap", lambda disk: with_bitmap(disk, (134, UNUSABLE[1])), "strata bitmap map exits with 134"),
    ("our autoclear bit beside snapshots", "snapshot", bit_beside_snapshots, "an autoclear bit beside snapshots"),
]


class Deaf:
    """Tools of which one does not answer as it should."""

    def __init__(self, tools, **others):
        self.__dict__.update(vars(tools))
        self.check = tools.check
        self.__dict__.update(others)


def odd_tools(tools):
    """(name, tools with one that fails, what the judge has to say) of what no image makes them do."""
    class Closed:
        def open(self, _):
            return "no"

    def fails(kind):
        return types.SimpleNamespace(run=lambda *words: (1, "no") if words[0] == kind else tools.img.run(*words))

    yield "an image that QEMU does not open", Deaf(tools, reader=Closed()), "plain", honest, "QEMU cannot open it: no"
    yield "bitmaps that QEMU does not tell", Deaf(tools, img=fails("info")), "bitmap", with_bitmap, "qemu-img info fails"
    yield ("a bitmap that QEMU does not read", Deaf(tools, img=fails("map")), "bitmap",
           lambda disk: with_bitmap(disk, is_in_use=False), "QEMU does not call b0 in use, and cannot read it: no")
    yield "snapshots that are not listed", Deaf(tools, img=fails("snapshot")), "snapshot", kept_snapshot, "cannot be listed"
    yield "a snapshot that is not read", Deaf(tools, img=fails("convert")), "snapshot", kept_snapshot, "cannot be read: no"


def found(folder, tools, kind, serve):
    """What the judge says of all states of a recording."""
    disk = Disk(folder, kind)
    serve(disk)
    disk.entries[:0] = [Entry(0, len(content), 0, bytes(content), file) for file, content in disk.content.items()]
    disk.first = len(disk.content)
    disk.marks = [(count + disk.first, durable) for count, durable in disk.marks]
    disk.issues = [count + disk.first for count in disk.issues]
    status, text = disk.strata_says
    with open(disk.path("strata-says"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(disk.path("strata-ends"), "w", encoding="utf-8") as file:
        file.write(str(status))
    return judge_all(CHOICES, disk, Judge(disk, tools)).failures


def faults(folder):
    """(name, None or what is wrong) of each recording, judged in the folder `folder`."""
    make_images(folder)
    strata = os.path.join(folder, "strata")
    with open(strata, "w", encoding="utf-8") as script:
        script.write(f"#!/bin/sh\ncat '{folder}/strata-says'\nexit $(cat '{folder}/strata-ends')\n")
    os.chmod(strata, 0o755)
    with Tools(os.path.join(folder, "state"), [], strata) as tools:
        rows = [(name, tools, *row) for name, *row in RECORDINGS] + list(odd_tools(tools))
        for name, used, kind, serve, expected in rows:
            failures = found(folder, used, kind, serve)
            if expected is None:
                yield name, f"is called {failures[0]}" if failures else None
            else:
                is_noticed = any(re.search(expected, failure) for failure in failures)
                yield name, None if is_noticed else f"nobody says {expected!r}, but {failures[:3]}"
        yield "an answer of qemu-img check that changes", changed_answer(folder, tools)


def changed_answer(folder, tools):
    """The judge asks again every 32nd time although no table has changed; the answer has to be the same."""
    disk = Disk(folder, "plain")
    judge = Judge(disk, tools)
    judge.begin()
    judge.state.write(IMAGE, 0, bytes(disk.content[IMAGE]))
    judge.load()
    judge.code, judge.loads = 3, 31
    try:
        judge.load()
    except RuntimeError:
        return None
    return "is not noticed"

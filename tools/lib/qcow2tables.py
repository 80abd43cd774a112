# SPDX-License-Identifier: Apache-2.0
"""Where the tables of a qcow2 image lie: the clusters whose bytes say what the image is, and not what a disk holds.

Only for tools/powercut, to know when `qemu-img check` has to be asked again. It finds no fault: what it cannot follow
makes it give up, and then every change counts. Source: qcow2.rst, all its sections.
"""
import struct

ENTRY = 0x00FFFFFFFFFFFE00                        # offset in an entry of an L1 table or a bitmap table
BITMAPS, ENCRYPTION = 0x23852875, 0x0537BE77      # header extensions
CLUSTERS_MAX = 1 << 20


class Unfollowable(Exception):
    """The tables make no sense."""


class Tables:
    """The clusters of the header and of all tables of the image that `read(offset, length)` reads."""

    def __init__(self, read):
        self.read, self.clusters = read, set()
        header = self.bytes(0, 104)
        self.bits, = struct.unpack_from(">I", header, 20)
        if header[:4] != b"QFI\xfb" or not 9 <= self.bits <= 21:
            raise Unfollowable
        self.cluster = 1 << self.bits
        self.add(0, 1)
        version, = struct.unpack_from(">I", header, 4)
        l1_size, l1, counts, count_clusters, snapshots, snapshot_table = struct.unpack_from(">IQQIIQ", header, 36)
        self.level_1(l1, l1_size)
        for block in self.table(counts, count_clusters << self.bits >> 3):
            self.add(block & ~511, 1)
        self.snapshots(snapshot_table, snapshots)
        self.extensions(struct.unpack_from(">I", header, 100)[0] if version > 2 else 72)

    def bytes(self, offset, length):
        if length > CLUSTERS_MAX << 6:
            raise Unfollowable
        data = self.read(offset, length)
        if len(data) != length:
            raise Unfollowable
        return data

    def add(self, offset, length):
        """The clusters that `length` bytes at `offset` touch; none at 0, but for the header's."""
        first = offset >> self.bits
        end = offset + length - 1 >> self.bits
        if end - first > CLUSTERS_MAX:
            raise Unfollowable
        if offset or length == 1:
            self.clusters.update(range(first, end + 1))

    def table(self, offset, count):
        """The entries of a table that are not 0; the table's clusters are added."""
        if not offset or not count:
            return []
        self.add(offset, count * 8)
        data = self.bytes(offset, count * 8)
        return {entry for entry in struct.unpack(f">{count}Q", data) if entry}

    def level_1(self, offset, count):
        for entry in self.table(offset, count):
            self.add(entry & ENTRY, self.cluster)

    def snapshots(self, offset, count):
        start = offset
        for _ in range(count):
            entry = self.bytes(offset, 40)
            l1, l1_size, identifier, name = struct.unpack_from(">QIHH", entry)
            extra, = struct.unpack_from(">I", entry, 36)
            self.level_1(l1, l1_size)
            offset += 40 + extra + identifier + name + 7 & ~7
        if count:
            self.add(start, offset - start)

    def extensions(self, offset):
        while offset + 8 <= self.cluster:
            kind, length = struct.unpack(">II", self.bytes(offset, 8))
            if not kind:
                return
            if kind == BITMAPS:
                count, _, size, directory = struct.unpack(">IIQQ", self.bytes(offset + 8, 24))
                self.bitmaps(directory, size, count)
            elif kind == ENCRYPTION:
                self.add(*struct.unpack(">QQ", self.bytes(offset + 8, 16)))
            offset += 8 + length + 7 & ~7

    def bitmaps(self, offset, size, count):
        self.add(offset, size)
        for _ in range(count):
            entry = self.bytes(offset, 24)
            table, table_size = struct.unpack_from(">QI", entry)
            name, extra = struct.unpack_from(">HI", entry, 18)
            for data in self.table(table, table_size):
                self.add(data & ENTRY, self.cluster)
            offset += 24 + extra + name + 7 & ~7


def tables(read):
    """The `Tables` of an image, or None when they cannot be followed."""
    try:
        return Tables(read)
    except (Unfollowable, struct.error, OSError, OverflowError, MemoryError):
        return None

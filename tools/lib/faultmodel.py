# SPDX-License-Identifier: Apache-2.0
"""What a disk may hold whose requests fail now and then, and its snapshots and bitmaps: the model of tools/faults.

One request at a time. A request that was answered with success has happened; one that failed may have happened or not,
each sector by itself. What was flushed is there after everything.
"""
from nbdload import SECTOR, ZERO, sector_version


class Broken(Exception):
    """A promise that was not kept."""


class Disk:
    """The versions that each sector may hold: now, and after writes were lost. Those in neither hold what they began with."""

    def __init__(self, size, initial):
        self.sector_count, self.initial = size // SECTOR, initial
        self.live, self.durable = {}, {}

    def now(self, sector):
        return self.live.get(sector) or frozenset([self.initial(sector)])

    def change(self, sectors, versions, failed, is_durable=False):
        """`sectors` were set to one of `versions`; None: they were trimmed, and hold what they held, or zeroes."""
        for sector in sectors:
            before = self.now(sector)
            after = before | ZERO if versions is None else versions
            self.live[sector] = before | after if failed else after
            # a trim may keep what is there, so FUA on one promises nothing of writes before it (proto.md, NBD_CMD_TRIM)
            if is_durable and not failed and versions is not None:
                self.durable[sector] = after
            else:
                self.durable[sector] = self.durable.get(sector, frozenset([self.initial(sector)])) | after

    def flushed(self):
        self.durable = dict(self.live)

    def observe(self, sector, version):
        """It was read, so that is what it holds."""
        if sector in self.live:
            self.live[sector] = frozenset([version])

    def judge(self, content, allowed, what):
        """Looks at all bytes of a disk; `allowed` is `live` or `durable`, or a copy of one. Returns the version of each
        sector."""
        if len(content) != self.sector_count * SECTOR:
            raise Broken(f"{what} has {len(content)} bytes")
        versions = []
        for sector in range(self.sector_count):
            data = content[sector * SECTOR:(sector + 1) * SECTOR]
            version = sector_version(sector, data)
            expected = allowed.get(sector) or (self.initial(sector),)
            if version not in expected:
                holds = "what nobody wrote" if version is None else f"version {version}"
                raise Broken(f"{what} holds {holds} in sector {sector}, allowed {sorted(expected)}")
            versions.append(version)
        return versions


class Snapshot:
    """A snapshot that was asked for when the disk held what `disk` holds now."""

    def __init__(self, name, disk):
        self.name, self.live = name, dict(disk.live)
        self.taken = self.deleting = self.deleted = False

    def judge(self, listed):
        """Returns whether it is there to be read."""
        is_there = self.name in listed
        if is_there and self.deleted:
            raise Broken(f"snapshot {self.name} was deleted, and is listed")
        if not is_there and self.taken and not self.deleting:
            raise Broken(f"snapshot {self.name} is lost")
        return is_there


class Bitmap:
    """A bitmap that was empty when the disk held what `disk` holds now."""

    def __init__(self, name, disk):
        self.name, self.disk = name, disk
        self.clear()

    def clear(self):
        """Or somebody tried to."""
        self.before = dict(self.disk.live)

    def judge(self, runs, versions):
        """`runs` are the bytes that it covers, as (start, count), `versions` what the disk holds."""
        covered = set()
        for start, count in runs:
            covered.update(range(start // SECTOR, (start + count + SECTOR - 1) // SECTOR))
        bare = [sector for sector, version in enumerate(versions) if sector not in covered
                and version not in (self.before.get(sector) or (self.disk.initial(sector),))]
        if bare:
            raise Broken(f"the bitmap {self.name} does not cover {len(bare)} sectors that have changed, {bare[0]} first")

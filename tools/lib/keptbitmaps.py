# SPDX-License-Identifier: Apache-2.0
"""The bitmap b0 that an image keeps, in states that a power cut may leave: does it cover what has changed?

Whoever may believe the bitmap is asked: `strata bitmap map`, which tells what a backup would copy, and QEMU wherever it
does not call the bitmap in use. Neither may show a changed sector as clean. A bitmap that cannot be used is nowhere
narrower than the truth, but is lost; whether it may be is said by decision 0024: not before snapshots come.
"""
import json
import struct

from nbdload import SECTOR

SNAPSHOT_COUNT, AUTOCLEAR = 60, 88                # in the header (qcow2.rst, "Header")
COMPLETE = 1 << 58                                # our autoclear bit (decision 0024)


class View:
    """What the states that are looked at say of b0."""

    def __init__(self, strata, image_tool, reader):
        self.strata, self.image_tool, self.reader = strata, image_tool, reader
        self.covered, self.believers, self.reason = [], [], None

    def look(self, path, opened, header):
        """Takes in the image at `path`, of which the reader has `opened` open. Returns None, or what is wrong."""
        self.covered, self.believers, self.reason = [], [], None
        if is_forgetful(header):
            return "an autoclear bit beside snapshots, of which qemu-img check -r makes none"
        code, text = self.strata.run("bitmap", "map", "-U", path, "b0")
        if code == 0:
            self.believe("strata", [tuple(map(int, line.split())) for line in text.splitlines()])
        elif code == 1 and "cannot be used" in text:
            self.reason = text.strip()
        else:
            return f"strata bitmap map exits with {code}: {text.strip()}"
        code, text = self.image_tool.run("info", "-U", "--output=json", opened)
        if code:
            return f"qemu-img info fails: {text.strip()}"
        bitmaps = json.loads(text)["format-specific"]["data"].get("bitmaps", [])
        flags = next((bitmap["flags"] for bitmap in bitmaps if bitmap["name"] == "b0"), None)
        if flags is None:
            return "QEMU sees no bitmap b0"
        if "in-use" not in flags:
            return self.look_through_qemu()
        return None

    def look_through_qemu(self):
        with self.reader.exported_bitmap("b0") as (options, error):
            if error:
                return f"QEMU does not call b0 in use, and cannot read it: {error}"
            code, text = self.image_tool.run("map", "--output=json", "--image-opts", options)
        if code:
            return f"QEMU does not call b0 in use, and cannot read it: {text.strip()}"
        # QEMU shows dirty blocks as such without data
        self.believe("QEMU", [(run["start"], run["length"]) for run in json.loads(text) if not run["data"]])
        return None

    def believe(self, who, runs):
        sectors = set()
        for start, length in runs:
            sectors.update(range(start // SECTOR, -(-(start + length) // SECTOR)))
        self.believers.append(who)
        self.covered.append(sectors)

    def narrower(self, changed):
        """What is wrong when the sectors `changed` differ from what they held when b0 was made, or None."""
        for who, covered in zip(self.believers, self.covered):
            bare = changed - covered
            if bare:
                return f"the bitmap does not cover sector {min(bare)}, which has changed ({who} believes it)"
        return None

    def missing(self, must_live):
        """What is wrong when the bitmap must have survived, or need not; or None."""
        return f"the bitmap is lost: {self.reason}" if must_live and self.reason else None


def is_forgetful(header):
    """Whether the image has snapshots and our autoclear bit: `qemu-img check -r` would forget them (decision 0024)."""
    version, = struct.unpack_from(">I", header, 4)
    if version < 3:
        return False
    snapshots, = struct.unpack_from(">I", header, SNAPSHOT_COUNT)
    autoclear, = struct.unpack_from(">Q", header, AUTOCLEAR)
    return snapshots > 0 and bool(autoclear & COMPLETE)

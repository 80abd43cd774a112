# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata snapshot`: what tools/powercut --snapshots runs.

Of each cut (verbcuts.py) it asks: does `qemu-img check` find leaks at worst (after the repair that an image marked
dirty demands; in version 2, which has no such mark, flags that differ from their counts are allowed, too), is the disk
what it was before the verb or what it is after it, and is every snapshot that the image lists the one that was taken.
"""
import os
import shutil

import powercutjudge
import verbcuts
from verbcuts import run

FORMATS = ["cluster_size=4096", "cluster_size=512,refcount_bits=8", "cluster_size=4096,compat=0.10",
           "cluster_size=16384,extended_l2=on", "cluster_size=65536,lazy_refcounts=on",
           "cluster_size=512,refcount_bits=64"]


class SnapshotCuts(verbcuts.Cuts):
    """One image and the verbs on it."""

    def facts(self, path):
        """What QEMU reads: the disk, and the disk of each snapshot."""
        code, text = self.tools.img.run("snapshot", "-U", "-l", path)
        if code:
            raise RuntimeError(text.strip())
        names = [row.split()[0] for row in text.splitlines()[2:]]
        return self.disk(path), {name: self.disk(path, "-l", f"snapshot.id={name}") for name in names}

    def step(self, *verb):
        """Cuts a verb, and goes on with its result."""
        image = self.path("image")
        before = self.facts(image)
        # what it is in the end, from a run that nobody cuts
        whole = self.path("whole")
        shutil.copyfile(image, whole)
        run(self.strata, "snapshot", verb[0], "-f", "qcow2", whole, *verb[1:])
        after = self.facts(whole)

        def judge(has_ended):
            state = os.path.join(self.folder, "image")
            trouble = self.check(state, is_version_3="compat=0.10" not in self.name)
            if trouble:
                return trouble
            try:
                facts = self.facts(state)
            except RuntimeError as error:
                return str(error)
            if facts not in ([after] if has_ended else [before, after]):
                return "the disk or a snapshot is neither the old nor the new one"
            return None

        folder = self.cut(["image"], ["snapshot", verb[0], "-f", "qcow2", "image", *verb[1:]], judge)
        shutil.copyfile(os.path.join(folder, "image"), image)

    def go(self):
        image = self.path("image")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", self.name, image, "2M")
        self.write(image)
        self.step("create", "one")
        self.write(image)
        self.step("create", "two")
        self.step("apply", "one")
        self.write(image)
        self.step("delete", "two")
        self.step("delete", "one")
        return self


def main(strata, seed, cells, reorders, show):
    """Returns the exit status of tools/powercut."""
    rows = []
    for turn in range(cells):
        name = FORMATS[turn % len(FORMATS)]
        rows.append((name, lambda tools, work, name=name, turn=turn:
                     SnapshotCuts(tools, strata, name, seed + turn, work, reorders).go()))
    return verbcuts.go("snapshots", rows, [], strata, powercutjudge.Tools, show)

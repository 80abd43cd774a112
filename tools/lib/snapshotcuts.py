# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata snapshot`: what tools/powercut --snapshots runs.

Of each cut (verbcuts.py) it asks: does `qemu-img check` find leaks at worst (after the repair that an image marked
dirty demands; in version 2, which has no such mark, flags that differ from their counts are allowed, too), is the disk
what it was before the verb or what it is after it, and is every snapshot that the image lists the one that was taken.
"""
import os

import verbcuts
from verbcuts import run

FORMATS = ["cluster_size=4096", "cluster_size=512,refcount_bits=8", "cluster_size=4096,compat=0.10",
           "cluster_size=16384,extended_l2=on", "cluster_size=65536,lazy_refcounts=on",
           "cluster_size=512,refcount_bits=64"]


class SnapshotCuts(verbcuts.Cuts):
    """One image and the verbs on it."""

    KIND, CELLS = "snapshots", FORMATS

    def facts(self, path):
        """What QEMU reads: the disk, and the disk of each snapshot."""
        code, text = self.tools.img.run("snapshot", "-U", "-l", path)
        if code:
            raise RuntimeError(text.strip())
        names = [row.split()[1] for row in text.splitlines()[2:]]
        return self.disk(path), {name: self.disk(path, "-l", f"snapshot.name={name}") for name in names}

    def step(self, verb, name):
        """Cuts a verb, and goes on with its result."""
        before = disk, snapshots = self.facts(self.path("image"))
        others = {other: content for other, content in snapshots.items() if other != name}
        after = {"create": (disk, {**snapshots, name: disk}), "delete": (disk, others),
                 "apply": (snapshots.get(name), snapshots)}[verb]

        def judge(has_ended):
            state = os.path.join(self.folder, "image")
            trouble = self.check(state, forgives_flags=True)
            if trouble:
                return trouble
            try:
                facts = self.facts(state)
            except RuntimeError as error:
                return str(error)
            if facts not in ([after] if has_ended else [before, after]):
                return "the disk or a snapshot is neither the old nor the new one"
            return None

        self.cut(["image"], ["snapshot", verb, "-f", "qcow2", "image", name], judge)

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

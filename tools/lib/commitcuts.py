# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata commit`: what tools/powercut --commits runs.

A commit writes two files, and what matters is their order: the recorder tells all writes to both as one sequence. Of
each cut (verbcuts.py) it asks: does `qemu-img check` find leaks at worst in both images, and is the overlay's disk what
it was before; when the commit has ended, is the base's, too.
"""
import os

import verbcuts
from verbcuts import run

# format and options of the base, options of the overlay, sizes of both
COMMITS = [
    ("raw", "", "cluster_size=4096", "1536k", "2M"),
    ("qcow2", "cluster_size=4096", "cluster_size=4096", "2M", "2M"),
    ("qcow2", "cluster_size=512", "cluster_size=65536", "1M", "2M"),
    ("qcow2", "cluster_size=16384,extended_l2=on", "cluster_size=16384,extended_l2=on", "2M", "2M"),
    ("qcow2", "cluster_size=4096,lazy_refcounts=on", "cluster_size=512,lazy_refcounts=on", "2M", "2M"),
    ("qcow2", "cluster_size=4096,compat=0.10", "cluster_size=4096,compat=0.10", "2M", "2M"),
    ("qcow2", "cluster_size=65536,refcount_bits=1", "cluster_size=512,refcount_bits=64", "2M", "2M"),
]


class CommitCuts(verbcuts.Cuts):
    """One overlay, its base, and a commit."""

    KIND, CELLS = "commits", COMMITS

    @staticmethod
    def name_of(cell):
        return " ".join(cell)

    def go(self):
        form, base, overlay, base_size, size = self.cell
        options = ["-o", base] if base else []
        run("qemu-img", "create", "-q", "-f", form, *options, self.path("base"), base_size)
        self.fill("base", form, 20)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", overlay, "-b", "base", "-F", form, self.path("overlay"), size)
        self.fill("overlay", "qcow2", 44)
        before = self.disk(self.path("overlay"))

        def judge(has_ended):
            paths = {name: os.path.join(self.folder, name) for name in ("base", "overlay")}
            for name, path in paths.items():
                trouble = self.check(path) if name == "overlay" or form == "qcow2" else None
                if trouble:
                    return trouble
            try:
                disk = self.disk(paths["overlay"])
            except RuntimeError as error:
                return str(error)
            if disk != before:
                return "the overlay's disk is not what it was"
            if has_ended:
                code, text = self.tools.img.run("compare", "-q", "-U", "-f", form, "-F", "qcow2", *paths.values())
                if code:
                    return f"the base is not what the overlay was: {text.strip()}"
            return None

        self.cut(["base", "overlay"], ["commit", "-q", "overlay"], judge)

    def fill(self, name, form, count):
        """Random writes and zeroes by QEMU; none of the cuts is in them."""
        words = []
        for _ in range(count):
            offset, length = self.chance.randrange(200) * 4096, self.chance.randrange(1, 12) * 4096
            zero = name == "overlay" and self.chance.random() < 0.25
            what = "-z" if zero else f"-P {self.chance.randrange(1, 255)}"
            words += ["-c", f"write {what} {offset} {length}"]
        run("qemu-io", "-f", form, *words, self.path(name), folder=self.work)

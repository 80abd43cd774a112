# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata convert`: what tools/powercut --convert runs.

Of each cut (verbcuts.py) it asks: is there no file of the target's name, or what was there before, byte for byte, or the
whole new image; when the conversion has ended, it is the new image.
"""
import os

import verbcuts
from verbcuts import digest, run

# what the target becomes, its words, whether there is a file of its name
CONVERSIONS = [("raw", (), False), ("raw", (), True), ("qcow2", (), False), ("qcow2", (), True),
               ("qcow2", ("-o", "cluster_size=4096"), True), ("qcow2", ("-c",), False),
               ("qcow2", ("-c", "-o", "compression_type=zstd,cluster_size=4096"), True),
               ("qcow2", ("-o", "extended_l2=on,cluster_size=16384"), False), ("qcow2", ("-B", "base", "-F", "raw"), True),
               ("qcow2", ("-m", "1", "-o", "cluster_size=512"), False), ("qcow2", ("-S", "0"), False)]


class ConvertCuts(verbcuts.Cuts):
    """One image that becomes another."""

    KIND, CELLS = "conversions", CONVERSIONS

    @staticmethod
    def name_of(cell):
        kind, words, is_replaced = cell
        return f"to {kind} {' '.join(words)}{' over a file' if is_replaced else ''}"

    def go(self):
        kind, words, is_replaced = self.cell
        source = self.path("source")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", source, "2M")
        self.write(source)
        whole = self.disk(source)
        files = ["source"]
        if "-B" in words:
            with open(self.path("base"), "wb") as base:
                base.write(bytes(2 << 20))
            files.append("base")
        if is_replaced:
            with open(self.path("target"), "wb") as old:
                old.write(b"what was there before" * 5000)
            files.append("target")

        def judge(has_ended):
            target = os.path.join(self.folder, "target")
            if not os.path.exists(target):
                self.codes["absent"] = self.codes.get("absent", 0) + 1
                return "there is no file of the target's name" if is_replaced or has_ended else None
            if is_replaced and not has_ended and digest(target) == digest(self.path("target")):
                self.codes["old"] = self.codes.get("old", 0) + 1
                return None
            if kind == "raw":
                self.codes["new"] = self.codes.get("new", 0) + 1
                return None if digest(target) == whole else "the file of the target's name is not whole"
            trouble = self.check(target)
            if trouble:
                return trouble
            try:
                found = self.disk(target)
            except RuntimeError as error:
                return str(error)
            return None if found == whole else "the file of the target's name is not whole"

        self.cut(files, ["convert", "-q", "-f", "qcow2", "-O", kind, *words, "source", "target"], judge)

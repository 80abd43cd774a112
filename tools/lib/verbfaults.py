#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Commands with known faults, each of which the judges of tools/powercut --snapshots, --commits, --keys and --convert
have to notice: what --self-test asks of them.

This file is run in the place of `strata`, too: QEMU's tools do the work on copies, and what they made is put in its place
well or badly. STRATA_FAULT says how.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

import verbcuts
from commitcuts import CommitCuts
from convertcuts import ConvertCuts
from keycuts import KeyCuts
from lukstries import again_when_too_fast
from snapshotcuts import SnapshotCuts

BLOCK = 4096


def made(words, folder):
    """Does in `folder` what `strata` would; returns the names of the files that it changed, in the order of commits."""
    def run(*command):
        again_when_too_fast(lambda: verbcuts.run(*command, folder=folder))

    verb, *rest = words
    if verb == "commit":
        run("qemu-img", "commit", "-q", rest[-1])
        return ["base", "overlay"]
    if verb == "convert":
        run("qemu-img", "convert", *rest[1:])
        return [rest[-1]]
    if verb == "snapshot":
        run("qemu-img", "snapshot", {"create": "-c", "delete": "-d", "apply": "-a"}[rest[0]], rest[-1], rest[-2])
        return [rest[-2]]
    option = {name: value for name, value in zip(rest, rest[1:]) if name.startswith("--")}
    secrets = ["--object", f"secret,id=old,file={option['--key-file']}"]
    if rest[0] == "add":
        secrets += ["--object", f"secret,id=new,file={option['--new-key-file']}"]
        change = "encrypt.state=active,encrypt.new-secret=new,encrypt.iter-time=10"
    else:
        change = f"encrypt.state=inactive,encrypt.keyslot={option['--slot']}"
    run("qemu-img", "amend", *secrets, "-o", change, "--image-opts",
        f"driver=qcow2,file.filename={rest[-1]},encrypt.key-secret=old")
    return [rest[-1]]


def spoil(words, name, folder):
    """Changes a byte of the disk that `name` holds."""
    objects, more = [], ""
    if words[0] == "key":
        key = words[words.index("--key-file") + 1]
        objects, more = ["--object", f"secret,id=old,file={key}"], ",encrypt.key-secret=old"
    driver = "raw" if "raw" in words else "qcow2"
    subprocess.run(["qemu-io", *objects, "-c", "write -P 0xee 65536 512", "--image-opts",
                    f"driver={driver},file.filename={name}{more}"], cwd=folder, check=True, timeout=60, capture_output=True)


def put(name, data, fault):
    """Puts the new content of a file in its place."""
    if fault == "in place":
        with open(name, "r+b" if os.path.exists(name) else "w+b", buffering=0) as file:
            old = file.read().ljust(len(data), b"\0")
            for at in reversed(range(0, len(data), BLOCK)):
                if data[at:at + BLOCK] != old[at:at + BLOCK]:
                    os.pwrite(file.fileno(), data[at:at + BLOCK], at)
            file.truncate(len(data))
            os.fsync(file.fileno())
        return
    with open(name + ".new", "wb", buffering=0) as file:
        file.write(data)
        if fault != "not flushed":
            os.fsync(file.fileno())
    os.rename(name + ".new", name)
    if fault != "not flushed":
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def stand_in(words, fault):
    """What this file does in the place of `strata`."""
    if fault == "nothing" or fault == "but not removed" and words[1] == "remove":
        return
    with tempfile.TemporaryDirectory(prefix="powercut-") as folder:
        for name in os.listdir("."):
            shutil.copyfile(name, os.path.join(folder, name))
        names = made(["1" if fault == "in another slot" and word == "2" else word for word in words], folder)
        if fault == "other bytes":
            spoil(words, names[0], folder)
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                put(name, file.read(), fault)


def rows():
    """(kind, its cell, how the work is put in its place, what the judge has to say)."""
    snapshot, to_raw, over_old = SnapshotCuts.CELLS[0], *ConvertCuts.CELLS[:2]
    to_qcow2, commit, commit_raw = ConvertCuts.CELLS[4], CommitCuts.CELLS[1], CommitCuts.CELLS[0]
    neither, key = "neither the old nor the new one", KeyCuts.CELLS[1]
    return [
        (SnapshotCuts, snapshot, "well", None),
        (SnapshotCuts, snapshot, "nothing", neither),
        (SnapshotCuts, snapshot, "in place", "check of image exits with [123]"),
        (SnapshotCuts, snapshot, "not flushed", neither),
        (SnapshotCuts, snapshot, "other bytes", neither),
        (CommitCuts, commit, "well", None),
        (CommitCuts, commit, "nothing", "the base is not what the overlay was"),
        (CommitCuts, commit, "in place", "check of (base|overlay) exits with [123]"),
        (CommitCuts, commit_raw, "not flushed", "the overlay's disk is not what it was"),
        (CommitCuts, commit, "other bytes", "the overlay's disk is not what it was"),
        (ConvertCuts, to_raw, "well", None),
        (ConvertCuts, to_qcow2, "well", None),
        (ConvertCuts, to_raw, "nothing", "there is no file of the target's name"),
        (ConvertCuts, over_old, "nothing", "is not whole"),
        (ConvertCuts, over_old, "in place", "is not whole"),
        (ConvertCuts, to_qcow2, "in place", "check of target exits with [123]"),
        (ConvertCuts, over_old, "not flushed", "is not whole"),
        (ConvertCuts, to_qcow2, "other bytes", "is not whole"),
        (KeyCuts, key, "well", None),
        (KeyCuts, key, "nothing", "key two was added, and does not open it"),
        (KeyCuts, key, "but not removed", "key one was removed, and opens it"),
        (KeyCuts, key, "not flushed", "check of image exits with [123]"),
        (KeyCuts, key, "in another slot", "check of image exits with 1.*Invalid password"),
        (KeyCuts, key, "other bytes", "key two opens another disk"),
    ]


def faults():
    """(name, None or what is wrong) of each command."""
    judged = {}
    for cuts, cell, fault, expected in rows():
        place = cuts.KIND, cell, fault
        if place not in judged:
            os.environ["STRATA_FAULT"] = fault
            try:
                judged[place] = verbcuts.judged(cuts, os.path.abspath(__file__), cell, 1, 3).failures
            finally:
                del os.environ["STRATA_FAULT"]
        failures = judged[place]
        name = f"{cuts.KIND} {cuts.name_of(cell)} put in its place: {fault}"
        if expected is None:
            yield name, f"is called {failures[0]}" if failures else None
        else:
            is_noticed = any(re.search(expected, failure) for failure in failures)
            yield name, None if is_noticed else f"nobody says {expected!r}, but {failures[:3]}"


if __name__ == "__main__":
    stand_in(sys.argv[1:], os.environ["STRATA_FAULT"])

# SPDX-License-Identifier: Apache-2.0
"""Damage that the judges of tools/faults have to notice: what tools/faults --self-test runs.

A run without a fault goes well; then something is done to the image, or to what the program said, before the judge looks
at it. A call that is lost, and said to be done, is the damage that a program might do itself.
"""
import os
import re
import struct
import subprocess

import commitfaults
import daemonfaults
from faultmodel import Broken

L1_TABLE_OFFSET = 40                           # of the header (qcow2.rst, "Header")


def tool(*words, **more):
    subprocess.run(words, check=True, timeout=60, capture_output=True, **more)


def poke(path, at, data):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def lose_count(path):
    """The cluster of the L1 table is counted zero times: corruption, not a leak."""
    with open(path, "rb") as file:
        header = file.read(104)
        bits = struct.unpack_from(">I", header, 20)[0]
        table, width = struct.unpack_from(">Q", header, 48)[0], 1 << struct.unpack_from(">I", header, 96)[0]
        file.seek(table)
        block = struct.unpack(">Q", file.read(8))[0]
    cluster = struct.unpack_from(">Q", header, L1_TABLE_OFFSET)[0] >> bits
    poke(path, block + cluster * width // 8, bytes(width // 8))


def write(run, words):
    tool("qemu-io", "-f", "qcow2", "-c", words, "disk", cwd=run.folder)


def forget_bitmap(run):
    tool("qemu-img", "bitmap", "--clear", "disk", "b0", cwd=run.folder)


def forget_snapshot(run):
    tool("qemu-img", "snapshot", "-d", "s2", "disk", cwd=run.folder)


def revive_snapshot(run):
    tool("qemu-img", "snapshot", "-c", "s1", "disk", cwd=run.folder)


def change_snapshot(run):
    tool("qemu-img", "snapshot", "-d", "s2", "disk", cwd=run.folder)
    tool("qemu-img", "snapshot", "-c", "s2", "disk", cwd=run.folder)


def fail_unseen(run):
    """The daemon had failed to write, and ended with the status 0: what was lost was answered with success."""
    run.disk.live[0] = frozenset([run.version])


def remove_bitmap(run):
    tool("qemu-img", "bitmap", "--remove", "disk", "b0", cwd=run.folder)


# the cell, the damage, and what the judge says then
DAEMON = [
    ("plain", "one sector holds what nobody wrote", lambda run: write(run, "write -P 7 2359296 512"), "what nobody wrote"),
    ("plain", "one sector holds what it did before", lambda run: write(run, "write -z 614400 512"), "version 0 in sector 1200"),
    ("plain", "a sector that nobody wrote to changes", lambda run: write(run, "write -P 7 3670016 512"), "in sector 7168"),
    ("plain", "success is answered for a write that is lost", fail_unseen, "the image holds version"),
    ("plain", "the L1 table is not counted", lambda run: lose_count(run.path("disk")), "qemu-img check exits with 2"),
    ("luks", "the L1 table is not counted", lambda run: lose_count(run.path("disk")), "qemu-img check exits with 2"),
    ("raw-data-file", "a sector of the data file changes", lambda run: poke(run.path("data"), 1 << 20, b"x" * 512),
     "what nobody wrote"),
    ("snapshots", "a snapshot is lost", forget_snapshot, "snapshot s2 is lost"),
    ("snapshots", "a snapshot that was deleted is there", revive_snapshot, "snapshot s1 was deleted, and is listed"),
    ("snapshots", "a snapshot holds what the disk holds now", change_snapshot, "snapshot s2 holds"),
    ("bitmaps", "a bitmap is narrower than the truth", forget_bitmap, "b0 does not cover"),
    ("bitmaps", "a bitmap is gone without a word", remove_bitmap, "is lost, and nothing was said"),
    ("all", "a bitmap is narrower than the truth", forget_bitmap, "b0 does not cover"),
]


def daemon(programs, work):
    """Yields what was done and what the judge said, or None."""
    templates = {}
    for name, what, damage, words in DAEMON:
        if name not in templates:
            cell = next(cell for cell in daemonfaults.CELLS if cell.name == name)
            templates[name] = daemonfaults.Template(cell, programs, os.path.join(work, name))
        with daemonfaults.Run(programs, templates[name]) as run:
            yield f"{name}: {what}", words, broken_by(lambda: run.go(damage))


def broken_by(body):
    try:
        body()
    except Broken as broken:
        return str(broken)
    return None


# MARK: Commits

def rewrite(name, words):
    return lambda folder, done: tool("qemu-io", "-f", "qcow2", "-c", words, name, cwd=folder)


def say(status, text):
    def change(_, done):
        done.returncode, done.stderr = status, text
    return change


def undo(folder, done):
    """The base is what it was: nothing was committed, and the commit says it was."""
    for name in ("base", "overlay"):
        tool("cp", f"../start/{name}", name, cwd=folder)


def clear(folder, done):
    tool("qemu-img", "bitmap", "--clear", "base", "b", cwd=folder)


def replace_snapshot(folder, done):
    tool("qemu-img", "snapshot", "-d", "one", "base", cwd=folder)
    tool("qemu-img", "snapshot", "-c", "one", "base", cwd=folder)


# the cell's number, the damage, and what the judge says then
COMMITS = [
    (0, "nothing is committed, with success", undo, "has not changed the base|has not emptied"),
    (0, "a failure without words", say(1, ""), "exit status 1 with the words ''"),
    (0, "the end by a signal", say(-11, "x"), "exit status -11"),
    (1, "one sector of the base is not the overlay's", rewrite("base", "write -P 9 910k 512"), "disk is not what it was|has not changed"),
    (1, "the overlay changes", rewrite("overlay", "write -P 9 10k 512"), "the overlay's disk is not what it was"),
    (1, "the base's L1 table is not counted", lambda folder, done: lose_count(os.path.join(folder, "base")),
     "check of base exits with"),
    (1, "the bitmap of the base is narrower than the truth", clear, "its bitmap calls it clean"),
    (2, "the snapshot of the base changes", replace_snapshot, "the base's snapshot is not what it was"),
]


def commits(programs, work):
    """Yields the same, then that of each write that is lost in silence."""
    cells = {}
    for place, what, damage, words in COMMITS:
        if place not in cells:
            folder = os.path.join(work, f"commit-{place}")
            os.mkdir(folder)
            cells[place] = commitfaults.Cell(programs, commitfaults.CELLS[place], folder)
        yield f"commit {place}: {what}", words, cells[place].attempt("", "EIO", 0, damage)[0]
    # of a raw base every write is data: the first, one in the middle and the last
    count = cells[0].counts["pwritev2"]
    for number in sorted({1, (count + 1) // 2, count}):
        yield (f"commit 0: write {number} of {count} is lost, and said to be done", "disk is not what it was|has not changed",
               cells[0].attempt("pwritev2", "lost", number)[0])


def main(programs, work):
    """Returns how many were noticed, and how many were not."""
    noticed = missed = 0
    for body in (daemon, commits):
        for what, words, said in body(programs, work):
            if said and re.search(words, said):
                noticed += 1
                continue
            missed += 1
            print(f"MISSED {what}: {said or 'nobody noticed'}", flush=True)
    return noticed, missed

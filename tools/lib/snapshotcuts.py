# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata snapshot`: what tools/powercut --snapshots runs.

Each verb works on an image in the recorder's file. Every prefix of what it wrote, and random subsets of what it
wrote between two synchronisations, is then an image as a cut could leave it. Of each it asks: does `qemu-img
check` find leaks at worst (after the repair that an image marked dirty demands; in version 2, which has no such
mark, flags that differ from their counts are allowed, too), is the disk what it was before the verb or what it is
after it, and is every snapshot that the image lists the one that was taken.
"""
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

import recorder as recording_file
from recorder import FLUSH

SECTOR = 512
DIRTY_BIT_BYTE = 79                               # incompatible features, bits 0-7 (qcow2.rst, "Header")
FORMATS = ["cluster_size=4096", "cluster_size=512,refcount_bits=8", "cluster_size=4096,compat=0.10",
           "cluster_size=16384,extended_l2=on", "cluster_size=65536,lazy_refcounts=on",
           "cluster_size=512,refcount_bits=64"]


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def digest(path):
    with open(path, "rb") as content:
        return hashlib.sha256(content.read()).hexdigest()


class Facts:
    """What QEMU reads from an image: its disk, and the disk of each of its snapshots."""

    def __init__(self, path, scratch):
        def disk(*choice):
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", *choice, path, scratch)
            return digest(scratch)

        self.disk = disk()
        rows = run("qemu-img", "snapshot", "-l", path).splitlines()[2:]
        self.snapshots = {row.split()[0]: disk("-l", f"snapshot.id={row.split()[0]}") for row in rows}


class Cuts:
    """One image and the verbs on it."""

    def __init__(self, strata, options, seed, work, reorders):
        self.strata, self.options, self.work, self.reorders = strata, options, work, reorders
        self.chance = random.Random(f"{options} {seed}")
        self.image, self.scratch = os.path.join(work, "image"), os.path.join(work, "disk")
        self.codes, self.failures = {}, []

    def step(self, *verb):
        """Runs a verb in the recorder, goes on with its result, and judges every cut of it."""
        before = Facts(self.image, self.scratch)
        entries, size = self.record(verb)
        start = os.path.join(self.work, "start")
        shutil.copyfile(self.image, start)
        with open(self.image, "r+b") as image:
            self.apply(image, entries)
            image.truncate(max(size, os.path.getsize(self.image)))
        after = Facts(self.image, self.scratch)
        name = f"{self.options} {' '.join(verb)}"
        for cut in range(len(entries) + 1):
            self.judge(start, entries[:cut], before, after, f"{name} prefix {cut}")
        bounds = [0] + [i + 1 for i, entry in enumerate(entries) if entry[2] & FLUSH]
        for low, high in zip(bounds, bounds[1:]):
            for turn in range(self.reorders):
                pending = [e for e in entries[low:high] if e[1]]
                chosen = [self.torn(e) for e in pending if self.chance.random() < 0.5]
                self.chance.shuffle(chosen)
                self.judge(start, entries[:low] + chosen, before, after,
                           f"{name} reorder {low}..{high} #{turn}")

    def torn(self, entry):
        start, length, flags, data = entry
        sectors = length // SECTOR
        if not data or sectors < 2 or start % SECTOR or self.chance.random() > 0.3:
            return entry
        keep = self.chance.randrange(1, sectors) * SECTOR
        return (start, keep, flags, data[:keep])

    def record(self, verb):
        """Returns what the verb wrote, and the length of the file afterwards."""
        mounted, log, back = (os.path.join(self.work, n) for n in ("mounted", "log", "back"))
        open(mounted, "wb").close()
        process = subprocess.Popen([sys.executable, recording_file.__file__, mounted, back, log,
                                    str(64 << 20)])
        try:
            end = time.monotonic() + 10
            while not os.path.ismount(mounted):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("the recorder did not start: is /dev/fuse there?")
                time.sleep(0.02)
            with open(self.image, "rb") as source, open(mounted, "r+b", buffering=0) as target:
                target.write(source.read())
            first = recording_file.entry_count(log)
            run(self.strata, "snapshot", verb[0], "-f", "qcow2", mounted, *verb[1:])
            size = os.path.getsize(mounted)
        finally:
            if os.path.ismount(mounted):
                unmount = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-uz"]
                subprocess.run([*unmount, mounted], check=False)
            process.wait(30)
        return list(recording_file.read_log(log))[first:], size

    @staticmethod
    def apply(image, entries):
        for start, length, _, data in entries:
            image.seek(start)
            image.write(data[:length] if data else bytes(length))

    def judge(self, start, entries, before, after, label):
        state = os.path.join(self.work, "state")
        shutil.copyfile(start, state)
        with open(state, "r+b") as image:
            self.apply(image, entries)
            image.seek(DIRTY_BIT_BYTE)
            is_version_3 = "compat=0.10" not in self.options
            if is_version_3 and image.read(1)[0] & 1:
                image.close()
                subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", state],
                               capture_output=True, timeout=120)
        done = subprocess.run(["qemu-img", "check", "-f", "qcow2", state], capture_output=True, text=True,
                              timeout=120)
        code = done.returncode
        if code == 2 and not is_version_3:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            code = 3 if errors and all("OFLAG_COPIED" in line for line in errors) else 2
        self.codes[code] = self.codes.get(code, 0) + 1
        if code not in (0, 3):
            self.failures.append(f"{label}: check exits with {code}: {done.stderr[:300]}")
            return
        try:
            facts = Facts(state, self.scratch)
        except RuntimeError as error:
            self.failures.append(f"{label}: {error}")
            return
        if (facts.disk, facts.snapshots) not in [(f.disk, f.snapshots) for f in (before, after)]:
            self.failures.append(f"{label}: the disk or a snapshot is neither the old nor the new one")

    def go(self):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", self.options, self.image, "2M")
        self.write()
        self.step("create", "one")
        self.write()
        self.step("create", "two")
        self.step("apply", "one")
        self.write()
        self.step("delete", "two")
        self.step("delete", "one")

    def write(self):
        """Random writes by QEMU; none of the cuts is in them."""
        words = []
        for _ in range(6):
            offset, length = self.chance.randrange(60) * 32768, self.chance.randrange(1, 12) * 4096
            words += ["-c", f"write -P {self.chance.randrange(1, 255)} {offset} {length}"]
        run("qemu-io", "-f", "qcow2", *words, self.image)


def main(strata, seed, cells, reorders, show):
    """Returns the exit status of tools/powercut."""
    codes, failures, total = {}, [], 0
    for turn in range(cells):
        options = FORMATS[turn % len(FORMATS)]
        work = tempfile.mkdtemp(prefix="powercut-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        try:
            cuts = Cuts(strata, options, seed + turn, work, reorders)
            cuts.go()
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(f"{'BROKEN' if cuts.failures else 'ok    '} snapshots {options}: {cuts.codes}", flush=True)
        for line in cuts.failures[:show]:
            print("   ", line)
        total += sum(cuts.codes.values())
        failures += cuts.failures
        for code, count in cuts.codes.items():
            codes[code] = codes.get(code, 0) + count
    print(f"{total} states of snapshots: {codes.get(0, 0)} clean, {codes.get(3, 0)} leaks only, "
          f"{codes.get(2, 0)} corrupt; {len(failures)} bad")
    return 1 if failures else 0

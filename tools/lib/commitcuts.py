# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata commit`: what tools/powercut --commits runs.

A commit writes two files, and what matters is their order: so it runs under strace, which tells all writes to both as
one sequence. A cut leaves of each file what came before its last synchronisation, and any part of the rest. Of each
state it asks: does `qemu-img check` find leaks at worst in both images, and is the overlay's disk what it was before.
"""
import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile

SECTOR = 512
DIRTY_BIT_BYTE = 79                               # incompatible features, bits 0-7 (qcow2.rst, "Header")
CALLS = "pwrite64,pwritev,pwritev2,write,writev,fallocate,ftruncate,fdatasync,fsync,sync_file_range,openat,openat2"
# format and options of the base, options of the overlay, sizes of both
CELLS = [
    ("raw", "", "cluster_size=4096", "1536k", "2M"),
    ("qcow2", "cluster_size=4096", "cluster_size=4096", "2M", "2M"),
    ("qcow2", "cluster_size=512", "cluster_size=65536", "1M", "2M"),
    ("qcow2", "cluster_size=16384,extended_l2=on", "cluster_size=16384,extended_l2=on", "2M", "2M"),
    ("qcow2", "cluster_size=4096,lazy_refcounts=on", "cluster_size=512,lazy_refcounts=on", "2M", "2M"),
    ("qcow2", "cluster_size=4096,compat=0.10", "cluster_size=4096,compat=0.10", "2M", "2M"),
    ("qcow2", "cluster_size=65536,refcount_bits=1", "cluster_size=512,refcount_bits=64", "2M", "2M"),
]


def run(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def unescape(text):
    return bytes.fromhex(text.replace("\\x", ""))


class Trace:
    """What a process did to some files: (file, kind, offset, bytes or length), in order."""

    def __init__(self, text, names):
        self.entries, self.names, self.descriptors = [], names, {}
        for line in text.splitlines():
            found = re.match(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)", line)
            if found:
                self.take(found[1], found[2], int(found[3]))

    def take(self, call, words, result):
        if call in ("openat", "openat2"):
            name = os.path.basename(unescape(re.search(r'"((?:\\x..)*)"', words)[1]).decode())
            if result >= 0:
                self.descriptors[result] = self.names.get(name)
            return
        file = self.descriptors.get(int(words.split(",")[0].rstrip(")")))
        if file is None or result < 0:
            return
        numbers = [int(n, 0) for n in re.findall(r"(?<![\w\\])(0x[0-9a-f]+|\d+)(?!\w)", re.sub(r'"[^"]*"', "", words))]
        if call.startswith("pwrite"):
            data = b"".join(unescape(part) for part in re.findall(r'"((?:\\x..)*)"', words))
            # pwrite64(fd, "", count, offset) and pwritev(fd, [...], count, offset[, flags])
            offset = numbers[-1] if call in ("pwrite64", "pwritev") else numbers[-2] if numbers[-1] == 0 and \
                not words.endswith("]") else numbers[-1]
            if "RWF" in words:
                offset = numbers[-1]
            if len(data) != result:
                raise RuntimeError(f"a write of {result} bytes is not understood: {len(data)}")
            self.entries.append((file, "write", offset, data))
        elif call == "fallocate":
            if "PUNCH_HOLE" in words or "ZERO_RANGE" in words:
                self.entries.append((file, "zero", numbers[-2], numbers[-1]))
            elif "KEEP_SIZE" not in words:
                self.entries.append((file, "grow", numbers[-2] + numbers[-1], 0))
        elif call == "ftruncate":
            self.entries.append((file, "truncate", numbers[-1], 0))
        elif call in ("fdatasync", "fsync"):
            self.entries.append((file, "flush", 0, 0))
        else:
            raise RuntimeError(f"{call} on {file} is not replayed")


def apply(path, entries):
    with open(path, "r+b") as image:
        size = os.fstat(image.fileno()).st_size
        for _, kind, offset, what in entries:
            if kind == "write":
                image.seek(offset)
                image.write(what)
                size = max(size, offset + len(what))
            elif kind == "zero":
                end = min(offset + what, size)
                if end > offset:
                    image.seek(offset)
                    image.write(bytes(end - offset))
            elif kind == "truncate" or kind == "grow" and offset > size:
                image.flush()
                image.truncate(offset)
                size = offset


class Cuts:
    """One overlay, its base, and a commit."""

    def __init__(self, strata, cell, seed, work, reorders):
        self.strata, self.cell, self.work, self.reorders = strata, cell, work, reorders
        self.format = cell[0]
        self.chance = random.Random(f"{cell} {seed}")
        self.codes, self.failures = {}, []

    def path(self, *names):
        return os.path.join(self.work, *names)

    def go(self):
        form, base, overlay, base_size, size = self.cell
        os.mkdir(self.path("start"))
        options = ["-o", base] if base else []
        run("qemu-img", "create", "-q", "-f", form, *options, self.path("start/base"), base_size)
        self.write("base", form, 20)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", overlay, "-b", "base", "-F", form,
            self.path("start/overlay"), size)
        self.write("overlay", "qcow2", 44)
        before = self.disk("start")
        shutil.copytree(self.path("start"), self.path("end"))
        run("strace", "-f", "-xx", "-s", "9000000", "-o", self.path("trace"), "-e", f"trace={CALLS}",
            self.strata, "commit", "-q", "overlay", cwd=self.path("end"))
        with open(self.path("trace"), encoding="utf-8") as text:
            entries = Trace(text.read(), {"base": "base", "overlay": "overlay"}).entries
        self.make("state", entries)
        for name in ("base", "overlay"):
            if digest(self.path("state", name)) != digest(self.path("end", name)):
                raise RuntimeError(f"{self.cell}: the replay of {name} is not what the commit made")
        committed = run("qemu-img", "compare", "-f", form, "-F", "qcow2", self.path("end/base"), self.path("end/overlay"))
        if "identical" not in committed or self.disk("end") != before:
            raise RuntimeError(f"{self.cell}: the base is not what the overlay was")
        for cut in range(len(entries) + 1):
            self.judge(entries[:cut], before, f"prefix {cut}")
            for turn in range(self.reorders):
                self.judge(self.part_of(entries[:cut]), before, f"cut {cut} #{turn}")

    def write(self, name, form, count):
        words = []
        for _ in range(count):
            offset, length = self.chance.randrange(200) * 4096, self.chance.randrange(1, 12) * 4096
            zero = name == "overlay" and self.chance.random() < 0.25
            what = "-z" if zero else f"-P {self.chance.randrange(1, 255)}"
            words += ["-c", f"write {what} {offset} {length}"]
        run("qemu-io", "-f", form, *words, self.path("start", name), cwd=self.path("start"))

    def part_of(self, entries):
        """What is sure of each file, and some of the rest, in any order, torn between sectors."""
        chosen = []
        for file in ("base", "overlay"):
            own = [e for e in entries if e[0] == file]
            flushes = [i for i, e in enumerate(own) if e[1] == "flush"]
            sure = flushes[-1] if flushes else 0
            rest = [self.torn(e) for e in own[sure:] if self.chance.random() < 0.5]
            self.chance.shuffle(rest)
            chosen += own[:sure] + rest
        return chosen

    def torn(self, entry):
        file, kind, offset, data = entry
        if kind != "write" or len(data) < 2 * SECTOR or offset % SECTOR or self.chance.random() > 0.3:
            return entry
        return (file, kind, offset, data[:self.chance.randrange(1, len(data) // SECTOR) * SECTOR])

    def make(self, state, entries):
        os.makedirs(self.path(state), exist_ok=True)
        for name in ("base", "overlay"):
            shutil.copyfile(self.path("start", name), self.path(state, name))
            apply(self.path(state, name), [e for e in entries if e[0] == name])

    def disk(self, state):
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path(state, "overlay"), self.path("disk"))
        return digest(self.path("disk"))

    def judge(self, entries, before, label):
        self.make("state", entries)
        worst = 0
        for name, form in (("base", self.format), ("overlay", "qcow2")):
            if form == "raw":
                continue
            image = self.path("state", name)
            with open(image, "rb") as file:
                head = file.read(DIRTY_BIT_BYTE + 1)
            if head[7] == 3 and head[DIRTY_BIT_BYTE] & 1:
                subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", "-r", "all", image],
                               capture_output=True, timeout=120, check=False)
            done = subprocess.run(["qemu-img", "check", "-f", "qcow2", image], capture_output=True, text=True,
                                  timeout=120, check=False)
            if done.returncode not in (0, 3):
                worst = 2
                self.failures.append(f"{label}: check of {name} exits with {done.returncode}: {done.stderr[:300]}")
                break
            worst = max(worst, done.returncode)
        self.codes[worst] = self.codes.get(worst, 0) + 1
        if worst == 2:
            return
        try:
            disk = self.disk("state")
        except RuntimeError as error:
            self.failures.append(f"{label}: {error}")
            return
        if disk != before:
            self.failures.append(f"{label}: the overlay's disk is not what it was")


def digest(path):
    with open(path, "rb") as content:
        return hashlib.sha256(content.read()).hexdigest()


def main(strata, seed, cells, reorders, show):
    """Returns the exit status of tools/powercut."""
    codes, failures, total = {}, [], 0
    for turn in range(cells):
        cell = CELLS[turn % len(CELLS)]
        work = tempfile.mkdtemp(prefix="powercut-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        try:
            cuts = Cuts(strata, cell, seed + turn, work, reorders)
            cuts.go()
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(f"{'BROKEN' if cuts.failures else 'ok    '} commit {' '.join(cell)}: {cuts.codes}", flush=True)
        for line in cuts.failures[:show]:
            print("   ", line)
        total += sum(cuts.codes.values())
        failures += cuts.failures
        for code, count in cuts.codes.items():
            codes[code] = codes.get(code, 0) + count
    print(f"{total} states of commits: {codes.get(0, 0)} clean, {codes.get(3, 0)} leaks only, "
          f"{codes.get(2, 0)} corrupt; {len(failures)} bad")
    return 1 if failures else 0

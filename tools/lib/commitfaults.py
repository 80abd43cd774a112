# SPDX-License-Identifier: Apache-2.0
"""The n-th call of each kind fails, or transfers less, in the middle of `strata commit`: what tools/faults --commits runs.

For every n of a fixed workload, with failingcall.c preloaded. Asked each time:

  truth     success means that the base says all that the overlay said, and that the overlay is empty; a failure says
            why, and no signal ends the program
  images    qemu-img check finds base and overlay clean or with leaks, never worse; the overlay's disk is what it was,
            and a snapshot of the base too
  bitmap    the base's bitmap covers every block in which the base changed, or nobody may use it
  again     the same commit without a fault succeeds, and does what one commit would have done; first a bitmap that nobody
            may use is removed where the base has to grow, as the refusal says
"""
import concurrent.futures
import os
import shutil
import subprocess

import failingcalls
from faultmodel import Broken

BLOCK = 65536
# Zero bytes read before the end of a file are no fault of a disk.
FAULTS = [("pread", ["EIO", "short"]), ("preadv", ["EIO", "short"]), ("pwrite", ["EIO", "ENOSPC", "EDQUOT", "short"]),
          ("pwritev2", ["EIO", "ENOSPC", "EDQUOT", "short"]), ("fdatasync", ["EIO", "ENOSPC", "EDQUOT"]),
          ("fallocate", ["EIO", "ENOSPC", "EDQUOT", "EOPNOTSUPP"]), ("ftruncate", ["EIO", "ENOSPC"])]
# format, options and size of the base, options and size of the overlay, and what else the base has
CELLS = [
    ("raw", "", "1M", "cluster_size=4096", "1536k", ""),
    ("qcow2", "cluster_size=4096", "1M", "cluster_size=4096", "1536k", "bitmap"),
    ("qcow2", "cluster_size=16384", "1M", "cluster_size=65536", "1M", "snapshot"),
    ("qcow2", "data_file=data,cluster_size=4096", "1M", "cluster_size=16384,extended_l2=on", "1M", ""),
]
WRITES = {
    "base": ["write -P 1 0 700k"],
    "overlay": ["write -P 2 100k 70k", "write -z 300k 128k", "write -P 3 500k 5k", "write -P 4 900k 100k",
                "write -z 640k 20k", "write -P 5 4k 512"],
}


def run(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


class Cell:
    """One pair of images, as it is before the commit and after."""

    def __init__(self, programs, words, work):
        self.strata, self.library, self.work = programs.strata, programs.library, work
        self.form, base, base_size, overlay, size, self.more = words
        self.name = " ".join(word for word in words if word)
        start = os.path.join(work, "start")
        os.mkdir(start)
        options = ["-o", base] if base else []
        run("qemu-img", "create", "-q", "-f", self.form, *options, "base", base_size, cwd=start)
        self.write(start, "base", self.form)
        if self.more == "snapshot":
            run("qemu-img", "snapshot", "-c", "one", "base", cwd=start)
        if self.more == "bitmap":
            run("qemu-img", "bitmap", "--add", "-g", str(BLOCK), "base", "b", cwd=start)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", overlay, "-b", "base", "-F", self.form, "overlay", size, cwd=start)
        self.write(start, "overlay", "qcow2")
        self.disk = self.content(start, "overlay", "qcow2")
        self.before = self.content(start, "base", self.form)
        self.snapshot = self.content(start, "base", "qcow2", "-l", "one") if self.more == "snapshot" else b""
        folder = self.copy("end")
        injection = failingcalls.Injection(self.library, folder)
        done = self.commit(folder, injection.environment)
        if done.returncode:
            raise RuntimeError(f"{self.name}: a commit fails without a fault: {done.stderr}")
        self.judge(folder, done)
        self.counts = injection.counts()

    @staticmethod
    def write(folder, name, form):
        words = [word for command in WRITES[name] for word in ("-c", command)]
        run("qemu-io", "-f", form, *words, name, cwd=folder)

    @staticmethod
    def content(folder, name, form, *more):
        target = os.path.join(folder, "content")
        run("qemu-img", "convert", "-f", form, "-O", "raw", *more, name, target, cwd=folder)
        with open(target, "rb") as file:
            return file.read()

    def copy(self, name):
        folder = os.path.join(self.work, name)
        shutil.copytree(os.path.join(self.work, "start"), folder)
        return folder

    def commit(self, folder, environment):
        return subprocess.run([self.strata, "commit", "-q", "overlay"], cwd=folder, capture_output=True, text=True, timeout=60,
                              check=False, env=environment)

    def attempt(self, call, error, number, damage=None):
        """Returns what was broken, or None, and whether the commit failed. `damage` gets the folder and how the commit
        ended before the judge does, and may change both."""
        folder = self.copy(f"{call}-{error}-{number}")
        done = None
        try:
            done = self.commit(folder, failingcalls.Injection(self.library, folder, call, error, number).environment)
            if damage:
                damage(folder, done)
            self.judge(folder, done)
            if error == "short" and done.returncode:
                raise Broken("a short transfer is taken for a failure")
            again = self.commit(folder, os.environ)
            if self.more == "bitmap" and "remove it first" in again.stderr:
                # As QEMU has it: an image does not grow while it has a bitmap that nobody may use.
                run("qemu-img", "bitmap", "--remove", "base", "b", cwd=folder)
                again = self.commit(folder, os.environ)
            if again.returncode:
                raise Broken(f"the next commit fails: {again.stderr.strip()[:300]}")
            self.judge(folder, again)
        except Broken as broken:
            said = f" (it said: {done.stderr.strip()[:300]})" if done and done.stderr else ""
            return f"{self.name}: {call} number {number}, {error}: {broken}{said}", True
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return None, done.returncode != 0

    def judge(self, folder, done):
        if done.returncode not in (0, 1) or bool(done.returncode) != bool(done.stderr.strip()):
            raise Broken(f"exit status {done.returncode} with the words '{done.stderr.strip()[:300]}'")
        for name in ("base", "overlay"):
            if name == "base" and self.form == "raw":
                continue
            check = subprocess.run(["qemu-img", "check", "-f", "qcow2", name], cwd=folder, capture_output=True, text=True,
                                   timeout=60, check=False)
            if check.returncode not in (0, 3):
                raise Broken(f"qemu-img check of {name} exits with {check.returncode}: {check.stderr.strip()[:300]}")
        if self.content(folder, "overlay", "qcow2") != self.disk:
            raise Broken("the overlay's disk is not what it was")
        if self.snapshot and self.content(folder, "base", "qcow2", "-l", "one") != self.snapshot:
            raise Broken("the base's snapshot is not what it was")
        now = self.content(folder, "base", self.form)
        if self.more == "bitmap":
            self.judge_bitmap(folder, now)
        if done.returncode == 0:
            if now != self.disk:
                raise Broken("a commit that succeeded has not changed the base into the overlay's disk")
            if '"depth": 0, "present": true' in run("qemu-img", "map", "-f", "qcow2", "--output=json", "overlay", cwd=folder):
                raise Broken("a commit that succeeded has not emptied the overlay")

    def judge_bitmap(self, folder, now):
        done = subprocess.run([self.strata, "bitmap", "map", "base", "b"], cwd=folder, capture_output=True, text=True, timeout=60,
                              check=False)
        if "there is no bitmap" in done.stderr:
            return                                        # `attempt` has removed it
        usable = done.returncode == 0
        in_use = "in-use" in run("qemu-img", "info", "--output=json", "base", cwd=folder)
        if not usable and not in_use:
            raise Broken("QEMU believes a bitmap that we do not")
        if not usable:
            return
        runs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
        old = self.before.ljust(len(now), b"\0")
        for start in range(0, len(now), BLOCK):
            if old[start:start + BLOCK] != now[start:start + BLOCK] and not any(
                    at <= start and min(start + BLOCK, len(now)) <= at + count for at, count in runs):
                raise Broken(f"the block at {start} of the base changed, and its bitmap calls it clean")


def main(programs, work, stride, first, jobs, only):
    """Returns how many passed and failed. `only`: a call, an error and a number, each or None."""
    call_wanted, error_wanted, number_wanted = only
    total = broken = felt = 0
    for place, words in enumerate(CELLS):
        folder = os.path.join(work, str(place))
        os.mkdir(folder)
        cell = Cell(programs, words, folder)
        runs = [(call, error, number) for call, errors in FAULTS for error in errors
                for number in ([number_wanted] if number_wanted else range(first, cell.counts[call] + 1, stride))
                if call_wanted in (None, call) and error_wanted in (None, error)]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for text, was_felt in pool.map(lambda one, cell=cell: cell.attempt(*one), runs):
                felt += was_felt
                broken += bool(text)
                if text:
                    print(f"BROKEN {text}", flush=True)
        total += len(runs)
        shown = ", ".join(f"{count} {call}" for call, count in cell.counts.items() if count)
        print(f"a commit of {cell.name} makes {shown}", flush=True)
    print(f"{felt} of {total} faults made a commit fail")
    return total - broken, broken

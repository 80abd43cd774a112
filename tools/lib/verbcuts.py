# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of a command: what tools/powercut --snapshots, --commits, --keys and --convert share.

A command of `strata` works on files in the recorder's folder. Every prefix of what it wrote, and random subsets of what
it wrote between two synchronisations, is then a folder as a cut could leave it, each judged once. Changes of names are
kept in their order and are durable when the folder is synchronised; until then any number of the first of them may be
there, whatever of the files' bytes is. When the command has ended, all that it did has to be there. Each kind of command
is a subclass of `Cuts`, whose `go` calls `cut` with what has to be true of each folder.
"""
import hashlib
import os
import random
import shutil
import subprocess
import tempfile

import recorder as recording_file
from powercutjudge import DIRTY_BIT_BYTE, Tools
from recorder import CREATE, DISCARD, FLUSH, FOLDER, FUA, GROW, RENAME, SHRINK, UNLINK

SECTOR = 512
NAMES = CREATE | RENAME | UNLINK


def run(*words, folder=None):
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def digest(path, is_padded=False):
    """Of a file's bytes; `is_padded`: whatever number of zeroes it ends with."""
    with open(path, "rb") as content:
        data = content.read()
    return hashlib.sha256(data.rstrip(b"\0") if is_padded else data).hexdigest()


class Log:
    """What one command did in the recorder's folder."""

    def __init__(self, work, files, words):
        """Runs `words` in a folder that holds the files at the paths `files`."""
        folder, log = os.path.join(work, "folder"), os.path.join(work, "log")
        with recording_file.Mounted(folder, os.path.join(work, "back"), log, 64 << 20):
            for path in files:
                shutil.copyfile(path, os.path.join(folder, os.path.basename(path)))
            first = recording_file.entry_count(log)
            run(*words, folder=folder)
            self.end = {name: digest(os.path.join(folder, name), is_padded=True) for name in os.listdir(folder)}
        shutil.rmtree(os.path.join(work, "back"))
        entries = list(recording_file.read_log(log))
        self.names = recording_file.names(entries[:first])
        self.before = {file: next(path for path in files if os.path.basename(path) == name)
                       for file, name in self.names.items()}
        self.entries = entries[first:]

    def make(self, entries, folder):
        """Makes the folder as it is after `entries`."""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        paths = {file: os.path.join(folder, f"file-{file}") for file in
                 {*self.names, *(entry.file for entry in entries)} - {FOLDER}}
        for file, path in paths.items():
            if file in self.before:
                shutil.copyfile(self.before[file], path)
            with open(path, "ab"):
                pass
        for entry in entries:
            if not entry.length and not entry.flags & GROW:
                continue
            with open(paths[entry.file], "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if entry.flags & GROW:
                    file.truncate(max(entry.start, size))
                elif entry.flags & SHRINK:
                    file.truncate(min(entry.start, size))
                elif entry.flags & DISCARD:
                    length = min(entry.length, max(0, size - entry.start))
                    os.pwrite(file.fileno(), bytes(length), entry.start)
                else:
                    os.pwrite(file.fileno(), entry.data[:entry.length], entry.start)
        names = recording_file.names(entries, self.names)
        for file, path in paths.items():
            if file in names:
                os.rename(path, os.path.join(folder, names[file]))
            else:
                os.unlink(path)

    def cuts(self, chance, reorders):
        """(label, entries, whether the command had ended) of each cut."""
        entries = self.entries
        for cut in range(len(entries) + 1):
            yield f"prefix {cut}", entries[:cut], cut == len(entries)
        flushed = {}
        for end, entry in enumerate([*entries, None]):
            if entry is not None and not entry.flags & FLUSH:
                continue
            for turn in range(reorders):
                yield f"reorder ..{end} #{turn}", list(self.scrambled(entries[:end], flushed, chance)), entry is None
            if entry is not None:
                flushed[entry.file] = end

    @staticmethod
    def scrambled(entries, flushed, chance):
        """What is there: all that was flushed, some of the bytes of the rest, and the first of the new names."""
        share, loose, names = chance.random(), [], []
        for place, entry in enumerate(entries):
            is_name = bool(entry.flags & NAMES)
            if place < flushed.get(FOLDER if is_name else entry.file, -1):
                yield entry
            elif is_name:
                names.append(entry)
            elif entry.flags & FUA or chance.random() < share:
                loose.append(torn(entry, chance))
        chance.shuffle(loose)
        yield from loose
        yield from names[:chance.randrange(len(names) + 1)]


def torn(entry, chance):
    """Sometimes only the first sectors of a write."""
    sectors = entry.length // SECTOR
    if not entry.data or entry.flags & NAMES or sectors < 2 or entry.start % SECTOR or chance.random() > 0.3:
        return entry
    keep = chance.randrange(1, sectors) * SECTOR
    return entry._replace(length=keep, data=entry.data[:keep])


class Cuts:
    """One row of commands, with what their cuts were found to be. Subclasses say of which kind and in which cells."""

    KIND, CELLS, OBJECTS = "", [], []

    def __init__(self, tools, strata, cell, seed, work, reorders):
        self.tools, self.strata, self.cell, self.work, self.reorders = tools, strata, cell, work, reorders
        self.name = self.name_of(cell)
        self.chance = random.Random(f"{self.name} {seed}")
        self.folder = tools.folder
        self.scratch = os.path.join(work, "scratch")
        self.codes, self.failures, self.count, self.seen = {}, [], 0, set()

    @staticmethod
    def name_of(cell):
        return cell

    def path(self, name):
        return os.path.join(self.work, name)

    def cut(self, files, words, judge):
        """Runs `strata` with `words` and lets `judge(has_ended)` look at each cut; it returns None or what is wrong.

        The files are replaced by what the command made of them.
        """
        log = Log(self.work, [self.path(name) for name in files], [self.strata, *words])
        self.seen.clear()
        for label, entries, has_ended in log.cuts(self.chance, self.reorders):
            self.count += 1
            log.make(entries, self.folder)
            state = (has_ended, *((name, digest(os.path.join(self.folder, name)))
                                  for name in sorted(os.listdir(self.folder))))
            if state in self.seen:
                continue
            self.seen.add(state)
            trouble = judge(has_ended)
            if trouble:
                self.failures.append(f"{self.name} {' '.join(words[:2])} {label}: {trouble}")
        self.codes["distinct"] = self.codes.get("distinct", 0) + len(self.seen)
        log.make(log.entries, self.folder)
        made = {name: digest(os.path.join(self.folder, name), is_padded=True) for name in os.listdir(self.folder)}
        if made != log.end:
            raise RuntimeError(f"{self.name}: the replay of {' '.join(words[:2])} is not what it made")
        for name in files:
            if os.path.exists(os.path.join(self.folder, name)):
                shutil.copyfile(os.path.join(self.folder, name), self.path(name))

    def check(self, path, secret="", forgives_flags=False):
        """Repairs an image that is marked dirty, as whoever opens it must, and checks it. None or what is wrong.

        `forgives_flags`: an image of version 2 may have OFLAG_COPIED where counts say otherwise, for it has no mark.
        """
        words = f"driver=qcow2,file.driver=file,file.locking=off,file.filename={path}{secret}"
        with open(path, "rb") as image:
            head = image.read(DIRTY_BIT_BYTE + 1)
        is_version_3 = head[7:8] == b"\3"
        if is_version_3 and head[DIRTY_BIT_BYTE] & 1:
            self.tools.check("-r", "all", words)
        code, text = self.tools.check(words)
        if code == 2 and forgives_flags and not is_version_3:
            errors = [line for line in text.splitlines() if line.startswith("ERROR")]
            code = 3 if errors and all("OFLAG_COPIED" in line for line in errors) else 2
        self.codes[code] = self.codes.get(code, 0) + 1
        return None if code in (0, 3) else f"check of {os.path.basename(path)} exits with {code}: {text[:300]}"

    def disk(self, path, *choice, secret=""):
        """The digest of what QEMU reads from the image."""
        words = f"driver=qcow2,file.driver=file,file.locking=off,file.filename={path}{secret}"
        objects = [word for text in self.tools.objects for word in ("--object", text)]
        code, text = self.tools.img.run("convert", *objects, *choice, "--image-opts", words, "-O", "raw", self.scratch)
        if code:
            raise RuntimeError(text.strip())
        return digest(self.scratch)

    def write(self, path, *objects, secret=""):
        """Random writes by QEMU; none of the cuts is in them."""
        words = []
        for _ in range(6):
            offset, length = self.chance.randrange(60) * 32768, self.chance.randrange(1, 12) * 4096
            words += ["-c", f"write -P {self.chance.randrange(1, 255)} {offset} {length}"]
        run("qemu-io", *objects, *words, "--image-opts", f"driver=qcow2,file.driver=file,file.filename={path}{secret}")


def judged(cuts, strata, cell, seed, reorders):
    """A row of commands of the class `cuts` in one cell, run and judged in a folder of its own."""
    work = tempfile.mkdtemp(prefix="powercut-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        with Tools(os.path.join(work, "state"), cuts.OBJECTS, strata) as tools:
            row = cuts(tools, strata, cell, seed, work, reorders)
            row.go()
            return row
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main(cuts, strata, seed, cells, reorders, show):
    """Judges as many rows of the class `cuts`; returns the exit status of tools/powercut."""
    codes, failures, total = {}, [], 0
    for turn in range(cells):
        row = judged(cuts, strata, cuts.CELLS[turn % len(cuts.CELLS)], seed + turn, reorders)
        print(f"{'BROKEN' if row.failures else 'ok    '} {cuts.KIND} {row.name}: {row.count} states, {row.codes}",
              flush=True)
        for line in row.failures[:show]:
            print("   ", line)
        total += row.count
        failures += row.failures
        for code, count in row.codes.items():
            codes[code] = codes.get(code, 0) + count
    print(f"{total} states of {cuts.KIND} ({codes.get('distinct', 0)} distinct): {codes.get(0, 0)} clean, "
          f"{codes.get(3, 0)} leaks only, {codes.get(2, 0)} corrupt; {len(failures)} bad")
    return 1 if failures else 0

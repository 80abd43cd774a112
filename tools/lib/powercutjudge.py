# SPDX-License-Identifier: Apache-2.0
"""Holds an image as a power cut could leave it, and judges it: the part of tools/powercut that looks at states.

`qemu-img check` judges the structure whenever a byte of a table differs from the state before (qcow2tables.py knows
the tables; every 32nd of the other states is checked all the same, and has to be found as the one before was). QEMU's
storage daemon reads the disk of every state. What changed since the state before is compared with what is allowed.
"""
import ctypes
import os
import struct

import keptbitmaps
import livesnapshots
import nbdload
import qcow2tables
from nbdload import SECTOR
from resident import Program, Reader

DIRTY_BIT_BYTE = 79                               # incompatible features, bits 0-7 (qcow2.rst, "Header")
BLOCK = 4096                                      # what one part of a state's hash stands for
ZEROES = bytes(BLOCK)
HASHES = (1 << 64) - 1


class State:
    """The files of one state, in a folder of their own."""

    def __init__(self, folder, names, sizes):
        self.folder, self.paths, self.files = folder, {}, {}
        os.makedirs(folder, exist_ok=True)
        for file, name in names.items():
            self.paths[file] = os.path.join(folder, name)
            self.files[file] = os.open(self.paths[file], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.truncate(self.paths[file], sizes[file])
        self.image = next(file for file, name in names.items() if name == "image")
        self.path = self.paths[self.image]
        self.tables = None
        self.changed, self.tables_changed = True, True
        self.hash = 0                                    # equal for states whose bytes are equal

    def read(self, offset, length):
        return os.pread(self.files[self.image], length, offset)

    def is_dirty(self):
        return bool(self.read(DIRTY_BIT_BYTE, 1)[0] & 1)

    def find_tables(self):
        """Notes where the tables are now."""
        self.tables = qcow2tables.tables(self.read)
        self.tables_changed = False

    def hash_of(self, file, start, length):
        first = start // BLOCK * BLOCK
        data = os.pread(self.files[file], -(-(start + length - first) // BLOCK) * BLOCK, first)
        total = 0
        for offset in range(0, len(data), BLOCK):
            block = data[offset:offset + BLOCK]
            if block != ZEROES[:len(block)]:
                total += hash((file, first + offset, block))
        return total

    def apply(self, entry, undo=None, first=0, count=None):
        """Writes (sectors `first`... of) an entry; what it replaces is appended to `undo`."""
        if not entry.length:
            return
        offset = first * SECTOR
        length = entry.length - offset if count is None else count * SECTOR
        data = entry.data[offset:offset + length] if entry.data else bytes(length)
        self.write(entry.file, entry.start + offset, data, undo)

    def write(self, file, start, data, undo=None):
        old = os.pread(self.files[file], len(data), start)
        if undo is not None:
            undo.append((file, start, old))
        if old == data:
            return
        before = self.hash_of(file, start, len(data))
        os.pwrite(self.files[file], data, start)
        self.hash = self.hash + self.hash_of(file, start, len(data)) - before & HASHES
        self.changed = True
        if file == self.image and not self.tables_changed:
            bits = self.tables.bits if self.tables else 0
            touched = range(start >> bits, (start + len(data) - 1 >> bits) + 1)
            self.tables_changed = not self.tables or not self.tables.clusters.isdisjoint(touched)

    def undo(self, undo):
        for file, start, old in reversed(undo):
            self.write(file, start, old)

    def close(self):
        for file in self.files.values():
            os.close(file)


class View:
    """The window of the disk as somebody reads it, beside what it may hold."""

    def __init__(self, oracle, start, length):
        self.oracle, self.start = oracle, start
        self.now, self.before = bytearray(length), None
        self.versions, self.bad, self.differs = {}, set(), set()
        self.durable, self.issued, self.allowed = {}, 0, {}

    def update(self):
        """Takes in what `now` holds."""
        if self.before is None:
            self.before = bytearray(len(self.now))
            for sector in range(self.start // SECTOR, (self.start + len(self.now)) // SECTOR):
                self.note(sector)
        else:
            self.compare(0, len(self.now), (1 << 18, 1 << 14, SECTOR * 4, SECTOR))
        self.now, self.before = self.before, self.now

    def compare(self, low, high, steps):
        """Notes the sectors of a range that differ from before."""
        step, *finer = steps
        for at in range(low, high, step):
            end = min(at + step, high)
            if self.now[at:end] != self.before[at:end]:
                if finer:
                    self.compare(at, end, finer)
                else:
                    self.note((self.start + at) // SECTOR)

    def note(self, sector):
        at = sector * SECTOR - self.start
        data = bytes(self.now[at:at + SECTOR])
        initial = nbdload.sector_content(sector, self.oracle.initial(sector))
        (self.differs.add if data != initial else self.differs.discard)(sector)
        if sector in self.oracle.history:
            self.versions[sector] = nbdload.sector_version(sector, data)
            self.rate(sector)
        else:
            (self.bad.add if data != initial else self.bad.discard)(sector)

    def rate(self, sector):
        allowed = self.allowed.get(sector)
        if allowed is None:
            allowed = self.allowed[sector] = self.oracle.allowed(sector, self.durable, self.issued)
        (self.bad.discard if self.versions[sector] in allowed else self.bad.add)(sector)

    def promise(self, durable, issued):
        """For the state that is looked at, `durable` was promised, and requests up to `issued` had been sent."""
        sectors = set()
        if durable is not self.durable:
            sectors.update(sector for sector, _ in durable.items() ^ self.durable.items())
        for sent in self.oracle.issued[min(issued, self.issued):max(issued, self.issued)]:
            sectors.update(sent)
        self.durable, self.issued = durable, issued
        for sector in sectors:
            self.allowed.pop(sector, None)
            self.rate(sector)

    def trouble(self):
        """What is wrong with the first bad sector, or None."""
        if not self.bad:
            return None
        sector = min(self.bad)
        if sector not in self.oracle.history:
            return f"sector {sector}, which was never written, has changed"
        at = sector * SECTOR - self.start
        version, other = self.versions[sector], struct.unpack_from("<QQ", self.before, at)
        holds = f"version {version}" if version is not None else \
            f"what looks like sector {other[0]} version {other[1]}"
        return (f"{len(self.bad)} sectors are wrong, sector {sector} holds {holds}, "
                f"allowed {sorted(self.allowed[sector])[:8]}")


class Tools:
    """The programs that judge, ready in the folder of the states; for a `with` statement."""

    def __init__(self, folder, objects, strata):
        self.folder, self.objects, self.strata_path = folder, objects, strata

    def __enter__(self):
        os.makedirs(self.folder, exist_ok=True)
        self.aio = "io_uring" if has_io_uring() else "threads"
        self.img = Program("qemu-img", self.folder)
        # it takes its words from the kernel, not from main
        self.strata = Program(self.strata_path, self.folder, is_resident=False)
        self.reader = Reader(self.folder, self.objects)
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.img.close()
        self.strata.close()

    def check(self, *words):
        """`qemu-img check` of an image that is described by the last word: (exit status, text)."""
        objects = [word for text in self.objects for word in ("--object", text)]
        return self.img.run("check", "-q", *objects, *words[:-1], "--image-opts", words[-1])


def has_io_uring():
    """Whether the kernel lets us use io_uring, with which QEMU needs no threads."""
    setup = ctypes.CDLL(None, use_errno=True).syscall
    descriptor = setup(425, 1, ctypes.create_string_buffer(120))
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


class Judge:
    """Judges states of one recording."""

    def __init__(self, recording, tools):
        self.recording, self.tools, self.oracle = recording, tools, recording.oracle
        start, length = recording.window
        self.views = [View(self.oracle, start, length)]
        if recording.has_raw_data:
            self.views.append(View(self.oracle, start, length))
        self.loads = self.checks = self.skipped = self.opens = 0
        self.code, self.trouble, self.is_open, self.is_repaired = None, None, False, False
        self.grown, self.seen = None, set()
        self.bitmap = keptbitmaps.View(tools.strata, tools.img, tools.reader)
        self.snapshots = livesnapshots.View(recording.verbs.snapshots, tools.img, recording.path("snapshot.raw"))
        self.state = None
        self.expected_rest = b"".join(nbdload.sector_content(s, self.oracle.initial(s))
                                      for s in range(recording.size // SECTOR))

    def begin(self):
        """A state with nothing in it."""
        if self.state is not None:
            self.state.close()
        self.state = State(self.recording.path("state"), self.recording.names, self.recording.file_sizes)
        self.is_open = False

    def is_new(self):
        """Whether no state with these bytes was judged before."""
        is_new = self.state.hash not in self.seen
        self.seen.add(self.state.hash)
        return is_new

    def judge(self, label, promised_at):
        """Returns (exit code of the check, None or what is wrong)."""
        if self.state.changed:
            self.load()
            self.state.changed = False
        trouble = self.trouble
        if not trouble and self.disk_size not in self.recording.sizes_at(promised_at):
            trouble = f"the disk has {self.disk_size} bytes"
        trouble = trouble or self.snapshots.missing(promised_at) or \
            self.bitmap.missing(self.recording.keeps_bitmaps_at(promised_at))
        durable = self.recording.durable_at(promised_at)
        for view, reader in zip(self.views, ("", "in the raw data file: ")):
            if not trouble:
                view.promise(durable, self.recording.issued_at(promised_at))
                trouble = view.trouble() and reader + view.trouble()
        return self.code, trouble and f"{label}: {trouble}"

    def load(self):
        """Checks the state and reads it through QEMU."""
        self.loads += 1
        state = self.state
        is_checked = state.tables_changed or not self.is_open or self.is_repaired
        if is_checked or self.loads % 32 == 0:
            before = None if is_checked else self.code
            self.trouble = self.open()
            if before is not None and before != self.code:
                raise RuntimeError(f"a state with the same tables was found to be {before}, then {self.code}")
        else:
            self.skipped += 1
        if not self.trouble:
            self.trouble = self.read(is_checked and self.opens % 16 == 1)
        if not self.trouble and self.recording.has_bitmaps:
            if is_checked:
                self.trouble = self.bitmap.look(state.path, self.opened, state.read(0, 104))
            self.trouble = self.trouble or self.bitmap.narrower(self.views[0].differs)
        # the bytes of a snapshot lie where no table changes: they are looked at now and then all the same
        if not self.trouble and self.recording.verbs.snapshots and (is_checked or self.loads % 8 == 0):
            self.trouble = self.snapshots.look(self.opened)

    def open(self):
        """Checks the state and opens it for reading. Returns None, or what is wrong."""
        self.is_open, self.is_repaired = False, False
        self.state.find_tables()
        path = self.state.path
        if self.state.is_dirty():
            path += ".repaired"
            copy_sparse(self.state.path, path)
            self.tools.check("-r", "all", self.image_options(path))
            self.is_repaired = True
        self.opened = path
        self.checks += 1
        self.code, text = self.tools.check(self.image_options(path))
        if self.code not in (0, 3):
            return f"qemu-img check exits with {self.code}: {'; '.join(text.strip().splitlines()[:3])}"
        self.opens += 1
        error = self.tools.reader.open(self.block_options(path))
        if error:
            return f"QEMU cannot open it: {error}"
        self.is_open = True
        return None

    def read(self, is_whole):
        """Reads the window, and with `is_whole` everything. Returns None, or what is wrong."""
        reader, size = self.tools.reader, self.recording.size
        self.disk_size = reader.size
        if reader.size < size:
            return f"the disk has {reader.size} bytes"
        start, length = self.recording.window
        error = reader.read_into(memoryview(self.views[0].now), start)
        if error:
            return error
        self.views[0].update()
        if self.recording.has_raw_data:
            data = next(file for file, name in self.recording.names.items() if name == "data")
            os.preadv(self.state.files[data], [self.views[1].now], start)
            self.views[1].update()
        pieces = [(0, start), (start + length, size)] if is_whole else []
        if reader.size > size:
            pieces.append((size, min(reader.size, size + (1 << 20))))
        for low, high in pieces:
            rest = bytearray(high - low)
            error = reader.read_into(memoryview(rest), low)
            if error:
                return error
            if rest != (self.expected_rest[low:high] if low < size else bytes(high - low)):
                return "a sector that was never written has changed" if low < size else \
                    "what the disk grew by is not zero"
        return None

    def image_options(self, path):
        return f"driver=qcow2,file.driver=file,file.aio={self.tools.aio},file.locking=off,file.filename={path}" \
            + (",encrypt.key-secret=key" if self.recording.is_encrypted else "")

    def block_options(self, path):
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": path, "locking": "off",
                                               "aio": self.tools.aio}}
        if self.recording.is_encrypted:
            options["encrypt"] = {"format": "luks", "key-secret": "key"}
        return options


def copy_sparse(source, target):
    """Copies a file, holes as holes."""
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            new.seek(at)
            while at < end:
                at += os.sendfile(new.fileno(), old.fileno(), at, end - at)
        new.truncate(size)

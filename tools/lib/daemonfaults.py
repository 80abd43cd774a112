# SPDX-License-Identifier: Apache-2.0
"""The n-th call of each kind fails, or transfers less, below a daemon that serves one client: what tools/faults runs."""
import collections
import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile

import failingcalls
import faultmodel
import nbdload
from faultmodel import Broken
from nbdload import FLAG_FUA, FLAG_NO_HOLE, SECTOR, ZERO

DIRTY_BIT_BYTE = 79                               # incompatible features, bits 0-7 (qcow2.rst, "Header")
SIZE, BASE_SIZE = 4 << 20, 1 << 20
SYNC = [("pread", ["EIO"]), ("preadv", ["EIO", "short"]), ("pwrite", ["EIO", "ENOSPC", "EDQUOT", "short"]),
        ("pwritev2", ["EIO", "ENOSPC", "EDQUOT", "short"]), ("fdatasync", ["EIO", "ENOSPC", "EDQUOT"]),
        ("fallocate", ["EIO", "ENOSPC", "EDQUOT", "EOPNOTSUPP"]), ("ftruncate", ["EIO", "ENOSPC"])]
NATIVE = [("aio-read", ["EIO", "short"]), ("aio-write", ["EIO", "ENOSPC", "EDQUOT", "short"]),
          ("aio-sync", ["EIO", "ENOSPC", "EDQUOT"])]
# name, options of the image, whether it has a base, what else it does, its engine
Cell = collections.namedtuple("Cell", "name options has_base features faults", defaults=((), SYNC))
CELLS = [
    Cell("plain", "cluster_size=4096,refcount_bits=64", True),
    Cell("bitmaps", "cluster_size=4096", True, ("bitmaps",)),
    Cell("compress", "cluster_size=4096", True, ("compress",)),
    Cell("snapshots", "cluster_size=4096", True, ("snapshots",)),
    Cell("data-file", "cluster_size=4096,data_file=data", True, ("bitmaps",)),
    Cell("raw-data-file", "cluster_size=16384,data_file=data,data_file_raw=on", False),
    Cell("luks", "cluster_size=4096,encrypt.format=luks,encrypt.iter-time=10", True, ("luks",)),
    Cell("subclusters", "cluster_size=16384,extended_l2=on", True),
    Cell("all", "cluster_size=16384,extended_l2=on,lazy_refcounts=on", True, ("bitmaps", "compress", "snapshots")),
    Cell("native", "cluster_size=4096", True, ("bitmaps", "snapshots"), NATIVE),
]
# (what, first byte, byte count, flags), or a verb of those that have the feature
STEPS = [
    ("write", 0, 4096, 0), ("write", 512, 1024, 0), ("flush", 0, 0, 0), ("write", 8192 + 512, 512, 0),
    ("snapshot-create", "s1"), ("write", 8192, 4096, FLAG_FUA), ("write", 2 << 20, 300 << 10, 0), ("bitmap-clear", "c0"),
    ("flush", 0, 0, 0), ("zero", 0, 16384, 0), ("write", 4096, 512, 0), ("snapshot-create", "s2"),
    ("trim", 2 << 20, 128 << 10, 0), ("bitmap-add", "n0"), ("flush", 0, 0, 0), ("write", 3 << 20, 64 << 10, 0),
    ("zero", 3 << 20, 32 << 10, FLAG_NO_HOLE), ("write", (3 << 20) + 4096, 8192, FLAG_FUA), ("snapshot-delete", "s1"),
    ("trim", 3 << 20, 64 << 10, 0), ("flush", 0, 0, 0), ("write", 2 << 20, 128 << 10, 0), ("bitmap-merge", "c0"),
    ("zero", 1536, 1024, 0), ("write", 512 << 10, 20 << 10, 0), ("snapshot-delete", "old"), ("flush", 0, 0, 0),
    ("write", 600 << 10, 4096, FLAG_FUA), ("zero", 512 << 10, 64 << 10, FLAG_FUA),
]


class Template:
    """The image that every run of a cell begins with."""

    def __init__(self, cell, programs, folder):
        self.cell, self.folder = cell, folder
        os.mkdir(folder)
        base = []
        if cell.has_base:
            nbdload.make_base(self.path("base"), "raw", BASE_SIZE)
            base = ["-b", "base", "-F", "raw"]
        create = ["qemu-img", "create", "-q"]
        if "luks" in cell.features:
            with open(self.path("key"), "w", encoding="utf-8") as file:
                file.write("a key for a test")
            create = [programs.strata, "create", "-q", "--key-file", "key"]
        self.run(*create, "-f", "qcow2", "-o", cell.options, *base, "disk", str(SIZE))
        if "bitmaps" in cell.features:
            for name, granularity in (("b0", 65536), ("c0", 4096)):
                self.run("qemu-img", "bitmap", "--add", "-g", str(granularity), "disk", name)
        if "snapshots" in cell.features:
            self.run("qemu-img", "snapshot", "-c", "old", "disk")

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *words):
        subprocess.run(words, check=True, timeout=60, cwd=self.folder)

    def initial(self, sector):
        return nbdload.base_version(sector) if self.cell.has_base and sector < BASE_SIZE // SECTOR else 0


class Run:
    """One image, a daemon with one fault, one workload; then a daemon without."""

    def __init__(self, programs, template, call="", error="EIO", number=0):
        self.programs, self.cell, self.call, self.error, self.number = programs, template.cell, call, error, number
        work = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.folder = os.path.join(tempfile.mkdtemp(prefix="faults-", dir=work), "images")
        shutil.copytree(template.folder, self.folder)
        self.injection = failingcalls.Injection(programs.library, self.folder, call, error, number)
        self.disk = faultmodel.Disk(SIZE, template.initial)
        has = self.cell.features
        self.snapshots = {"old": faultmodel.Snapshot("old", self.disk)} if "snapshots" in has else {}
        for snapshot in self.snapshots.values():
            snapshot.taken = True
        names = ("b0", "c0") if "bitmaps" in has else ()
        self.bitmaps = {name: faultmodel.Bitmap(name, self.disk) for name in names}
        self.version, self.failures, self.failed_flush, self.lost_bitmaps, self.status = 1, 0, False, set(), None
        self.was_felt = False

    def path(self, name):
        return os.path.join(self.folder, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(os.path.dirname(self.folder), ignore_errors=True)

    def go(self, damage=None):
        """Runs all of it. `damage` gets this before the judge does."""
        self.serve(self.injection.environment, self.work)
        self.was_felt = bool(self.failures or self.status)
        if damage:
            damage(self)
        content, usable = self.judge()
        if self.error == "short" and (self.was_felt or self.lost_bitmaps):
            raise Broken("a short transfer is taken for a failure")
        if not damage:
            self.serve(os.environ, lambda connection: self.again(connection, content))
            if self.status:
                raise Broken(f"the next daemon ends with {self.status}")
            _, still_usable = self.judge()
            if usable - still_usable:
                raise Broken(f"the next daemon lost the bitmaps {sorted(usable - still_usable)}")

    # MARK: The daemon

    def serve(self, environment, body):
        words = [self.programs.stratad, self.path("disk"), "--format", "qcow2", "--socket", self.path("s"), "--control",
                 self.path("c"), "--aio", "native" if self.cell.faults is NATIVE else "sync"]
        words += ["--compress", "on"] if "compress" in self.cell.features else []
        words += ["--key-file", self.path("key")] if "luks" in self.cell.features else []
        with open(self.path("said"), "ab") as said:
            server = subprocess.Popen(words, stdout=said, stderr=said, env=environment)
        try:
            try:
                nbdload.wait_for_socket(self.path("s"), server)
                connection = nbdload.Connection(self.path("s"))
            except nbdload.ServerGone:
                # it may listen before it refuses the image
                self.status = server.wait(30)
                if self.status <= 0 or not self.injection.has_happened():
                    raise
                if not self.said():
                    raise Broken("the daemon refuses to start without a word") from None
                return
            body(connection)
            connection.close()
            server.send_signal(signal.SIGTERM)
            self.status = server.wait(30)
            if self.status < 0:
                raise Broken(f"the daemon ended by signal {-self.status}")
            if self.status and not (self.injection.has_happened() and self.said()):
                raise Broken(f"the daemon ended with {self.status}, and nothing was wrong or nothing was said")
        except (nbdload.ServerGone, subprocess.TimeoutExpired) as error:
            raise Broken(f"the daemon is gone, or does not go: {error}") from error
        finally:
            if server.poll() is None:
                server.kill()
                server.wait(10)

    def said(self):
        with open(self.path("said"), encoding="utf-8", errors="replace") as file:
            return file.read().strip()

    def ask(self, request):
        """What the control socket answers."""
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(30)
                control.connect(self.path("c"))
                control.sendall(json.dumps(request).encode() + b"\n")
                return json.loads(control.makefile().readline())
        except (OSError, ValueError) as error:
            raise nbdload.ServerGone(f"the control socket: {error}") from error

    # MARK: The workload

    def work(self, connection):
        for step in STEPS:
            if step[0].partition("-")[0] not in ("snapshot", "bitmap"):
                self.request(connection, *step)
            elif step[0].partition("-")[0] + "s" in self.cell.features:
                self.verb(*step)
        self.read_all(connection)
        self.request(connection, "write", 700 << 10, SECTOR, 0)
        self.request(connection, "flush", 0, 0, 0)
        is_lost = self.failed_flush and self.call in ("fdatasync", "aio-sync") or self.injection.was_durable()
        error = self.request(connection, "flush", 0, 0, 0)
        if error and not is_lost and self.call not in ("fdatasync", "aio-sync"):
            raise Broken("no flush succeeds any more")
        if is_lost and not error and self.error == "EIO":
            raise Broken("a flush succeeds after a synchronisation that failed")

    def again(self, connection, content):
        """A daemon without faults reads what is there, and writes on it."""
        self.failures, self.failed_flush = 0, False
        read = self.read_all(connection)
        if read != content:
            raise Broken("the next daemon reads what QEMU does not")
        self.request(connection, "write", 100 << 10, SECTOR * 3, 0)
        self.request(connection, "write", (2 << 20) + SECTOR, 8192, FLAG_FUA)
        self.request(connection, "flush", 0, 0, 0)
        if self.failures:
            raise Broken("requests fail without a fault")

    def request(self, connection, what, start, count, flags):
        """Returns the error that the server answers with, or 0."""
        sectors = range(start // SECTOR, (start + count) // SECTOR)
        payload, versions = b"", ZERO if what == "zero" else None
        command = {"write": nbdload.CMD_WRITE, "zero": nbdload.CMD_ZEROES, "trim": nbdload.CMD_TRIM,
                   "flush": nbdload.CMD_FLUSH}[what]
        if what == "write":
            self.version += 1
            versions = frozenset([self.version])
            payload = b"".join(nbdload.sector_content(sector, self.version) for sector in sectors)
        cookie = connection.send(command, start, count, payload, flags)
        got, error, _ = connection.reply()
        if got != cookie:
            raise Broken("a reply belongs to no request")
        self.note(error)
        self.failed_flush |= bool(error) and (what == "flush" or bool(flags & FLAG_FUA))
        if what != "flush":
            self.disk.change(sectors, versions, bool(error), bool(flags & FLAG_FUA))
        elif not error:
            self.disk.flushed()
        return error

    def note(self, error):
        if error and not self.injection.has_happened():
            raise Broken(f"a request fails with errno {error} before anything was wrong")
        if error not in (0, 5, 28):
            raise Broken(f"a request fails with errno {error}")
        self.failures += bool(error)

    def verb(self, what, name):
        request = {"ask": what, "name": name}
        if what == "snapshot-create":
            self.snapshots[name] = faultmodel.Snapshot(name, self.disk)
        elif what == "snapshot-delete":
            request = {"ask": what, "snapshot": name}
            if not self.snapshots[name].taken:
                return
            self.snapshots[name].deleting = True
        elif what == "bitmap-add":
            request |= {"granularity": 32768, "persistent": True}
            added = faultmodel.Bitmap(name, self.disk)
        elif what == "bitmap-clear":
            self.bitmaps[name].clear()
        elif what == "bitmap-merge":
            request = {"ask": what, "sources": [name], "target": "b0"}
        answer = self.ask(request)
        if "error" in answer:
            if not self.injection.has_happened():
                raise Broken(f"{request} was answered with {answer} before anything was wrong")
            self.failures += 1
        elif what == "snapshot-create":
            self.snapshots[name].taken = True
        elif what == "snapshot-delete":
            self.snapshots[name].deleted = True
        elif what == "bitmap-add":
            self.bitmaps[name] = added

    def read_all(self, connection):
        """Everything, as the daemon reads it. A read may fail once."""
        content = bytearray()
        while len(content) < SIZE:
            for _ in range(2):
                cookie = connection.send(nbdload.CMD_READ, len(content), 64 << 10)
                got, error, data = connection.reply()
                if got != cookie:
                    raise Broken("a reply belongs to no request")
                self.note(error)
                if not error:
                    break
            if error:
                raise Broken(f"{len(content)} cannot be read: errno {error}")
            content += data
        for sector, version in enumerate(self.disk.judge(bytes(content), self.disk.live, "what the daemon reads")):
            self.disk.observe(sector, version)
        return bytes(content)

    # MARK: The judge

    def tool(self, *words):
        """Runs a program in the folder of the images; returns its exit status, what it printed, and its complaints."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder)
        return done.returncode, done.stdout, done.stderr.strip()

    def qemu(self, verb, *words):
        """qemu-img on the image."""
        options, image = ["-f", "qcow2"], ["disk"]
        if "luks" in self.cell.features:
            options = ["--object", "secret,id=s,file=key"]
            image = ["--image-opts", "driver=qcow2,file.filename=disk,encrypt.key-secret=s"]
        return self.tool("qemu-img", verb, *options, *image, *words)

    def judge(self):
        """Looks at the image at rest. Returns its disk, and the names of the bitmaps that can be used."""
        code, text, errors = self.check()
        if code not in (0, 3):
            raise Broken(f"qemu-img check exits with {code}: {'; '.join((text + errors).splitlines()[:3])}")
        content = self.convert()
        allowed = self.disk.durable if self.status else self.disk.live
        versions = self.disk.judge(content, allowed, "the image")
        for sector, version in enumerate(versions):
            self.disk.observe(sector, version)
        self.judge_snapshots()
        usable = {name for name, bitmap in self.bitmaps.items() if self.judge_bitmap(bitmap, versions)}
        self.disk.flushed()
        return content, usable

    def check(self):
        """qemu-img check, after a repair of a copy when the image is marked dirty, as the format demands."""
        with open(self.path("disk"), "rb") as file:
            is_dirty = file.read(DIRTY_BIT_BYTE + 1)[DIRTY_BIT_BYTE] & 1
        if not is_dirty:
            return self.qemu("check", "-q")
        # QEMU 7.2 forgets snapshots in a repair where there are bitmaps: only its counts are looked at
        shutil.move(self.path("disk"), self.path("dirty"))
        shutil.copyfile(self.path("dirty"), self.path("disk"))
        try:
            self.qemu("check", "-q", "-r", "all")
            return self.qemu("check", "-q")
        finally:
            shutil.move(self.path("dirty"), self.path("disk"))

    def convert(self, *words):
        code, _, errors = self.qemu("convert", "-O", "raw", *words, "raw")
        if code:
            raise Broken(f"QEMU cannot read it: {errors}")
        with open(self.path("raw"), "rb") as file:
            return file.read()

    def judge_snapshots(self):
        if not self.snapshots:
            return
        code, text, errors = self.tool("qemu-img", "snapshot", "-l", "disk")
        listed = {row.split()[1] for row in text.splitlines()[2:]}
        if code or listed - set(self.snapshots):
            raise Broken(f"QEMU lists the snapshots {sorted(listed)}: {errors}")
        for name, snapshot in self.snapshots.items():
            if snapshot.judge(listed):
                self.disk.judge(self.convert("-l", f"snapshot.name={name}"), snapshot.live, f"snapshot {name}")

    def judge_bitmap(self, bitmap, versions):
        """Returns whether it can be used."""
        code, text, errors = self.tool(self.programs.strata, "bitmap", "map", "disk", bitmap.name)
        if code:
            _, told, _ = self.qemu("info", "--output=json")
            bitmaps = json.loads(told)["format-specific"]["data"].get("bitmaps", [])
            flags = next((each["flags"] for each in bitmaps if each["name"] == bitmap.name), None)
            if not self.said():
                raise Broken(f"the bitmap {bitmap.name} is lost, and nothing was said: {errors}")
            if flags is not None and "in-use" not in flags:
                raise Broken(f"QEMU believes the bitmap {bitmap.name}, and we do not: {errors}")
            self.lost_bitmaps.add(bitmap.name)
            return False
        bitmap.judge([tuple(map(int, line.split())) for line in text.splitlines()], versions)
        return True


Programs = collections.namedtuple("Programs", "strata stratad library")


def attempt(programs, template, call, error, number):
    """Runs one fault. Returns (did it happen, was it felt, were bitmaps lost, None or what was broken)."""
    with Run(programs, template, call, error, number) as run:
        text = None
        try:
            run.go()
        except (Broken, subprocess.TimeoutExpired) as broken:
            said = run.said()
            text = f"{template.cell.name}: {call} number {number}, {error}: {broken}" + (
                f" (it said: {said[:300]})" if said else "")
        return run.injection.has_happened(), run.was_felt, bool(run.lost_bitmaps), text


def main(programs, work, chosen, stride, first, jobs, only):
    """Returns how many passed and failed. `only`: a call, an error and a number, each or None."""
    call_wanted, error_wanted, number_wanted = only
    passed = broken = 0
    for cell in CELLS:
        if chosen not in (None, cell.name):
            continue
        template = Template(cell, programs, os.path.join(work, cell.name))
        with Run(programs, template) as run:
            run.go()
            if run.failures or run.status or run.lost_bitmaps:
                raise SystemExit(f"{cell.name}: requests fail without a fault")
            counts = run.injection.counts()
        runs = [(call, error, number) for call, errors in cell.faults for error in errors
                for number in ([number_wanted] if number_wanted else range(first, counts[call] + 1, stride))
                if call_wanted in (None, call) and error_wanted in (None, error)]
        happened = felt = lost = bad = 0
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for was_met, was_felt, was_lost, text in pool.map(lambda one, cell=template: attempt(programs, cell, *one), runs):
                happened += was_met
                felt += was_felt
                lost += was_lost
                bad += bool(text)
                if text:
                    print(f"BROKEN {text}", flush=True)
        shown = ", ".join(f"{counts[call]} {call}" for call, _ in cell.faults if counts[call])
        print(f"{cell.name}: {shown}; {happened} of {len(runs)} faults happened, {felt} were felt"
              + (f", {lost} cost a bitmap" if lost else ""), flush=True)
        passed, broken = passed + len(runs) - bad, broken + bad
    return passed, broken

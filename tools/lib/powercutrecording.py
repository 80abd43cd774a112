# SPDX-License-Identifier: Apache-2.0
"""One run of a server under tools/powercut: what it wrote, in which order, and what it promised when."""
import bisect
import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess

import livesnapshots
import nbdload
import powercutcells
import recorder as recording_file
from lukstries import again_when_too_fast
from nbdload import SECTOR


class Unsupported(Exception):
    """The server says that it has no such feature."""


class Recording:
    """One run of the server: the log it left and the oracle of what it promised."""

    def __init__(self, args, cell, work, is_strata):
        self.cell, self.work, self.is_strata = cell, work, is_strata
        self.host_size = args.size * 2 + (4 << 20)
        self.marks = []                                  # (log entries, durable, size) in order
        self.issues = []                                 # log entries when each request was sent, in order
        self.sizes = [args.size]
        self.oracle = None
        self.bitmap_changes = max(args.bitmaps, cell.feature.bitmaps if cell.feature else 0)
        self.has_bitmaps = self.bitmap_changes > 0
        self.snapshot_changes = max(args.live_snapshots, cell.feature.snapshots if cell.feature else 0)
        self.verbs = livesnapshots.Verbs(self.ask)
        # decision 0024: beside snapshots, bitmaps do not survive
        self.has_snapshots = any("snapshot -c" in line for line in (cell.feature.prepare if cell.feature else ()))
        self.packs = "--compress" in (cell.feature.serve if cell.feature else "")
        self.has_raw_data = "data_file_raw=on" in cell.options
        self.is_encrypted = "encrypt." in cell.options
        self.first = 0
        self.size = args.size
        self.record(args)

    def path(self, name):
        return os.path.join(self.work, name)

    def record(self, args):
        log, sock, folder = map(self.path, ("log", "nbd.sock", "disk"))
        image = os.path.join(folder, "image")
        feature = self.cell.feature or powercutcells.Feature()
        words = {"image": image, "socket": sock, "size": args.size, "engine": self.cell.engine,
                 "cluster": self.cell.cluster, "control": self.path("control"), "secret": self.path("secret"),
                 "data": os.path.join(folder, "data"),
                 # with both engines, whichever seeds they have
                 "poll": 50 if self.cell.seed // 2 % 2 else 0}
        with open(words["secret"], "w", encoding="utf-8") as file:
            file.write("open-sesame")
        self.make_oracle(args, feature)
        with recording_file.Mounted(folder, self.path("back"), log, self.host_size):
            self.create(args, feature, image)
            for line in feature.prepare:
                self.tool(*shlex.split(line.format(**words)))
            if self.has_bitmaps:
                for name, granularity in (("b0", 65536), ("c0", 4096)):
                    opened = shlex.split(feature.create) + ["--image-opts", f"driver=qcow2,file.filename={image}" + (
                        ",encrypt.key-secret=key" if self.is_encrypted else "")]
                    self.tool("qemu-img", "bitmap", "--add", "-g", str(granularity), *opened, name)
            self.first = recording_file.entry_count(log)
            line = args.serve
            if self.is_strata:
                line += " --client-resize" if feature.resizes or args.resizes else ""
                line += " --control {control}" if self.has_bitmaps or self.snapshot_changes else ""
            server = None
            try:
                server = self.start(f"{line} {feature.serve}".format(**words), sock)
                connections = [nbdload.Connection(sock, args.export)]
                if connections[0].flags & nbdload.HAS_MULTI_CONN:
                    connections.append(nbdload.Connection(sock, args.export))
                self.drive(args, connections, log)
                status = nbdload.end(server)
                if status != 0:
                    raise RuntimeError(f"the server exits with {status} after SIGTERM")
            finally:
                if server is not None:
                    nbdload.end(server)
        entries = list(recording_file.read_log(log))
        self.names = recording_file.names(entries)
        # an attempt at creation that failed leaves entries of a file that is gone: they stand for nothing
        image = next(file for file, name in self.names.items() if name == "image")
        self.entries = [entry if entry.file in self.names else recording_file.Entry(0, 0, 0, b"", image)
                        for entry in entries]
        # what is written to may have been longer than it is; a base is as long as it is
        self.file_sizes = {file: self.host_size if name != "base" else
                           max(entry.start + entry.length for entry in self.entries if entry.file == file)
                           for file, name in self.names.items()}
        os.unlink(log)
        shutil.rmtree(self.path("back"))

    def tool(self, *words):
        """Runs a program in the recorder's folder, for QEMU finds data files from where it runs."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=self.path("disk"), check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")

    def make_oracle(self, args, feature):
        if feature.packed:
            nbdload.make_base(self.path("plain"), "raw", args.size)
            self.oracle = nbdload.Oracle(nbdload.base_version)
        elif self.cell.base:
            base_end = self.base_size(args) // SECTOR
            self.oracle = nbdload.Oracle(
                lambda sector: nbdload.base_version(sector) if sector < base_end else 0)
        else:
            self.oracle = nbdload.Oracle()

    def base_size(self, args):
        """The base is shorter than the overlay: beyond its end the overlay has to read as zeroes."""
        return args.size * 3 // 4 + 5 * SECTOR

    def create(self, args, feature, image):
        objects, options = shlex.split(feature.create), f"cluster_size={self.cell.cluster}{self.cell.options}"
        if feature.packed:
            self.tool("qemu-img", "convert", "-c", *objects, "-f", "raw", "-O", "qcow2", "-o", options,
                      self.path("plain"), image)
            return
        base = []
        if self.cell.base:
            # beside the image, for the server opens no other
            nbdload.make_base(self.path("base"), self.cell.base, self.base_size(args))
            shutil.copyfile(self.path("base"), os.path.join(self.path("disk"), "base"))
            base = ["-b", "base", "-F", self.cell.base]
        again_when_too_fast(lambda: self.tool("qemu-img", "create", "-q", *objects, "-f", "qcow2", "-o", options, *base,
                                              image, str(args.size)))

    def start(self, line, sock):
        """Starts the server; one that refuses the image or a word raises `Unsupported`."""
        said = self.path("said")
        with open(said, "wb") as errors:
            server = subprocess.Popen(shlex.split(line), stdout=subprocess.DEVNULL, stderr=errors)
        try:
            nbdload.wait_for_socket(sock, server)
        except nbdload.ServerGone as error:
            with open(said, encoding="utf-8", errors="replace") as file:
                text = file.read().strip()
            nbdload.end(server)
            if self.cell.feature and re.search("support|Unknown option|persistent bitmaps stale", text):
                raise Unsupported(text.splitlines()[0]) from error
            raise nbdload.ServerGone(f"{error}: {text}") from error
        return server

    def drive(self, args, connections, log):
        def mark():
            self.marks.append((recording_file.entry_count(log), dict(self.oracle.durable), load.size))

        def note_issue():
            self.issues.append(recording_file.entry_count(log))

        hot_mib = args.hot_mib if args.hot_mib is not None else min(max(32 * self.cell.cluster >> 20, 1), 4)
        load = nbdload.Load(connections, f"load {self.cell}", self.oracle, on_durable=mark, on_issue=note_issue,
                            hot_sectors=hot_mib * 2048, writes_only=args.writes_only,
                            whole_sectors=self.cell.cluster // SECTOR if self.packs else 0)
        chance = random.Random(f"resizes {self.cell}")
        resizes = max(args.resizes, self.cell.feature.resizes if self.cell.feature else 0)
        for _ in range(args.operations):
            if chance.random() < resizes / args.operations:
                # with small clusters, a table of this much is longer than what a refcount block counts
                most = min(1 << 30, self.cell.cluster << 19)
                load.resize(0, chance.choice([512, 65536, 1 << 20, most]))
            if chance.random() < self.bitmap_changes / args.operations:
                self.change_bitmaps(chance)
            if chance.random() < self.snapshot_changes / args.operations:
                self.verbs.change(chance, load, log)
            load.step()
        load.collect(0)
        load.flush(0)
        load.collect(0)
        for connection in connections:
            connection.close()
        self.counts, self.sizes = load.counts, load.sizes
        self.window = (load.start * SECTOR, load.span * SECTOR)

    def change_bitmaps(self, chance):
        """Asks for a change of the bitmaps beside b0, which only ever grows."""
        name = f"n{chance.randrange(3)}"
        request = chance.choice([
            {"ask": "bitmap-add", "name": name, "granularity": chance.choice([512, 4096, 1 << 20]),
             "persistent": True},
            {"ask": "bitmap-remove", "name": name},
            {"ask": "bitmap-clear", "name": "c0"},
            {"ask": "bitmap-merge", "sources": ["c0"], "target": "b0"},
            {"ask": "bitmap-disable", "name": "c0"},
            {"ask": "bitmap-enable", "name": "c0"},
        ])
        answer = self.ask(request)
        # there may be none of that name, or one already
        if "done" not in answer and "there is" not in answer.get("error", ""):
            raise RuntimeError(f"{request} was answered with {answer}")

    def ask(self, request):
        """What the control socket answers."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(self.path("control"))
            control.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(control.makefile().readline())

    def durable_at(self, entry_count):
        """What was promised when the log had `entry_count` entries."""
        index = bisect.bisect_right(self.marks, entry_count, key=lambda mark: mark[0])
        return self.marks[index - 1][1] if index else {}

    def issued_at(self, entry_count):
        """The last request that can have left something in the first `entry_count` entries of the log: an entry of a
        request comes behind those that were there when it was sent."""
        return bisect.bisect_left(self.issues, entry_count)

    def keeps_bitmaps_at(self, entry_count):
        """Whether bitmaps must have survived a cut when the log had `entry_count` entries."""
        return not self.has_snapshots and (self.verbs.began is None or entry_count <= self.verbs.began)

    def sizes_at(self, entry_count):
        """The sizes that the disk may have when the log had `entry_count` entries."""
        index = bisect.bisect_right(self.marks, entry_count, key=lambda mark: mark[0])
        answered = self.marks[index - 1][2] if index else self.sizes[0]
        return self.sizes[self.sizes.index(answered):]

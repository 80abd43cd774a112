# SPDX-License-Identifier: Apache-2.0
"""A run of tools/bench: images, groups of cells, interleaved rounds, and the time shared among them."""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import benchload
import nbdload
from benchcells import groups
from benchimages import Image, make_images
from benchservers import serves

MIB = 1 << 20
LOAD_SHARE = 0.7                                         # of the slowest server's throughput
CALIBRATION_SECONDS = 0.5
SECONDS_MIN, SECONDS_MAX = 0.3, 4.0
ROUNDS_MAX = {"idle-100": 3, "idle-1000": 1}              # memory does not vary, and the starts take long


def rounds_of(cell, args):
    return min(args.rounds, ROUNDS_MAX.get(cell.workload.name, args.rounds))


class Clock:
    """Shares the minutes that a run may take among its measurements (--minutes)."""

    COST_SECONDS = {"wake": 0.5, "wake-spin": 0.5, "startup": 0.5, "create": 0.3, "idle-1": 0.5, "idle-10": 1,
                    "idle-100": 4, "idle-1000": 40}

    def __init__(self, args, jobs):
        self.args, self.started, self.jobs = args, time.monotonic(), jobs  # jobs: (cell, server), one a round
        self.spent, self.count = 0.0, 0                  # beyond args.seconds, by measurements so far
        self.has_warned = False

    def elapsed(self):
        return time.monotonic() - self.started

    def note(self, cell, seconds):
        if cell.workload.name not in self.COST_SECONDS:
            self.spent += seconds - self.args.seconds
            self.count += 1

    def set_seconds(self, done):
        """Before a group of cells: the length of its measurements, from the time that is left."""
        if not self.args.minutes:
            return
        jobs = [cell for cell, _ in self.jobs if cell.name not in done]
        costs = sum(self.COST_SECONDS.get(cell.workload.name, 0) * rounds_of(cell, self.args) for cell in jobs)
        loads = sum(cell.workload.name not in self.COST_SECONDS for cell in jobs) * self.args.rounds
        overhead = self.spent / self.count if self.count > 20 else 0.7
        wanted = (self.args.minutes * 60 - 10 - self.elapsed() - costs) / max(1, loads) - overhead
        if wanted < SECONDS_MIN and loads and not self.has_warned:
            self.has_warned = True
            print(f"bench: {self.args.minutes:g} minutes are too few for {loads} measurements of "
                  f"{SECONDS_MIN} s: it will take longer", file=sys.stderr)
        self.args.seconds = min(SECONDS_MAX, max(SECONDS_MIN, wanted))


def last_words(image):
    """The last line that the server of a failed measurement wrote, after a colon."""
    try:
        with open(os.path.join(image.folder, "server.log"), errors="replace") as file:
            lines = file.read().strip().splitlines()
    except OSError:
        return ""
    return ": " + lines[-1][-300:] if lines else ""


class Run:
    """Every round of every cell, in `raw`: {name of a cell: {name of a server: [figures]}}."""

    def __init__(self, args, cells, servers):
        self.args, self.cells, self.servers = args, cells, servers
        self.folders, self.raw = {}, {}
        self.clock = Clock(args, [(cell, server) for cell in cells for server in self.servers_of(cell)])

    def servers_of(self, cell):
        return [server for server in self.servers if serves(server, cell)]

    def measure(self, note):
        """Calls `note` after each group of cells."""
        try:
            for place in dict.fromkeys(cell.place for cell in self.cells):
                os.makedirs(getattr(self.args, place), exist_ok=True)
                self.folders[place] = tempfile.mkdtemp(prefix="bench-", dir=getattr(self.args, place))
                make_images(self.folders[place], self.args.size * MIB,
                            {cell.image for cell in self.cells if cell.place == place})
            for group in groups(self.cells):
                self.clock.set_seconds(self.raw)
                self.measure_group([self.paced(cell) for cell in group])
                for cell in group:
                    print(f"[{self.clock.elapsed():4.0f} s] {cell.name}", file=sys.stderr)
                note()
        finally:
            for folder in self.folders.values():
                shutil.rmtree(folder, ignore_errors=True)

    def measure_group(self, group):
        for cell in group:
            self.raw[cell.name] = {server.name: [] for server in self.servers_of(cell)}
        for number in range(self.args.rounds):
            for cell in group:
                for server in self.servers_of(cell) if number < rounds_of(cell, self.args) else []:
                    self.raw[cell.name][server.name].append(self.measurement(cell, server))

    def measurement(self, cell, server):
        image = Image(self.folders[cell.place], cell.image)
        began = time.monotonic()
        try:
            figures = benchload.measure(cell, server, image, self.args)
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError, nbdload.ServerGone) as error:
            figures = {"error": f"{type(error).__name__}: {error}"[:300] + last_words(image)}
        self.clock.note(cell, time.monotonic() - began)
        return {**figures, "seconds": self.args.seconds}

    def paced(self, cell):
        """A paced cell with its load: a share of what the slowest of its servers does at full load.

        That is known when the run has measured the full cell; else one short round of it tells.
        """
        if not cell.is_paced:
            return cell
        rounds = self.raw.get(cell.full.name) or self.calibrate(cell)
        rates = [statistics.median(found) for server in self.servers_of(cell)
                 if (found := [r["iops"] for r in rounds.get(server.name, []) if "iops" in r])]
        return cell._replace(load=LOAD_SHARE * min(rates)) if rates else cell

    def calibrate(self, cell):
        seconds, self.args.seconds = self.args.seconds, min(self.args.seconds, CALIBRATION_SECONDS)
        try:
            return {server.name: [self.measurement(cell.full, server)] for server in self.servers_of(cell)}
        finally:
            self.args.seconds = seconds

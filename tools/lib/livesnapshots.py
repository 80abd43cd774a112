# SPDX-License-Identifier: Apache-2.0
"""Snapshots that come and go while a server is under load, and what a power cut may leave of them.

A snapshot that was taken, and that no verb has begun to delete, has to be listed. One that is listed has of every
sector the version that was answered before the verb began, or one that was in flight, and the same in every state.
"""
import os

import nbdload
import recorder
from nbdload import SECTOR


class Snapshot:
    """One snapshot: what it may hold, and between which entries of the log it has to be there."""

    def __init__(self, name, load):
        self.name, self.taken, self.deleting, self.content = name, None, None, None
        self.oracle, self.allowed = load.oracle, None
        # of each sector the places in its history; no two requests on one sector are in flight together
        self.places = {sector: (len(past) - 1 - load.busy.get(sector, False), len(past))
                       for sector, past in load.oracle.history.items()}

    def is_due(self, entry_count):
        """Whether it has to be listed when the log had `entry_count` entries."""
        return self.taken is not None and self.taken <= entry_count and (
            self.deleting is None or entry_count < self.deleting)

    def trouble(self, content):
        """What is wrong with the snapshot's bytes, or None."""
        if content == self.content:
            return None
        if self.content is not None:
            return f"snapshot {self.name} differs from what it was in another state"
        if self.allowed is None:                         # only now: trims are settled after their answers
            self.allowed = {sector: frozenset().union(*(values for _, values in self.oracle.history[sector][first:end]))
                            for sector, (first, end) in self.places.items()}
        for at in range(0, len(content), SECTOR):
            sector, data = at // SECTOR, content[at:at + SECTOR]
            initial = self.oracle.initial(sector)
            if sector not in self.allowed and data == nbdload.sector_content(sector, initial):
                continue
            if nbdload.sector_version(sector, data) not in self.allowed.get(sector, (initial,)):
                return f"snapshot {self.name} holds in sector {sector} what the disk did not hold then"
        self.content = content
        return None


class Verbs:
    """The snapshots of one recording. `ask` sends a request to the control socket and returns its answer."""

    def __init__(self, ask):
        self.ask, self.snapshots = ask, []
        self.began = None                                # log entries when the first verb began

    def change(self, chance, load, log):
        """Takes or deletes a snapshot while requests are in flight."""
        if self.began is None:
            self.began = recorder.entry_count(log)
        alive = [snapshot for snapshot in self.snapshots if snapshot.deleting is None]
        if alive and chance.random() < 0.4:
            snapshot = chance.choice(alive)
            snapshot.deleting = recorder.entry_count(log)
            request = {"ask": "snapshot-delete", "snapshot": snapshot.name}
        else:
            snapshot = Snapshot(f"live{len(self.snapshots)}", load)
            self.snapshots.append(snapshot)
            request = {"ask": "snapshot-create", "name": snapshot.name}
        answer = self.ask(request)
        if "snapshot" not in answer:
            raise RuntimeError(f"{request} was answered with {answer}")
        if snapshot.deleting is None:
            snapshot.taken = recorder.entry_count(log)


class View:
    """The snapshots of the states, as QEMU lists and reads them: each one is read in every fourth look, for what went
    wrong with it stays so."""

    def __init__(self, snapshots, image_tool, raw):
        self.snapshots, self.tool, self.raw, self.listed, self.turn = snapshots, image_tool, raw, set(), 0

    def look(self, path):
        """Takes in what the state lists and holds. Returns None, or what is wrong."""
        code, text = self.tool.run("snapshot", "-U", "-l", path)
        if code:
            return f"its snapshots cannot be listed: {text.strip()}"
        self.listed = {row.split()[1] for row in text.splitlines()[2:]}
        self.turn += 1
        for number, snapshot in enumerate(self.snapshots):
            is_read = snapshot.content is None or (self.turn + number) % 4 == 0
            if snapshot.name not in self.listed or not is_read:
                continue
            code, text = self.tool.run("convert", "-U", "-f", "qcow2", "-O", "raw", "-l",
                                       f"snapshot.name={snapshot.name}", path, self.raw)
            if code:
                return f"snapshot {snapshot.name} cannot be read: {text.strip()}"
            with open(self.raw, "rb") as file:
                content = file.read()
            os.unlink(self.raw)
            if trouble := snapshot.trouble(content):
                return trouble
        return None

    def missing(self, entry_count):
        """What is wrong with the list at this cut, or None."""
        for snapshot in self.snapshots:
            if snapshot.is_due(entry_count) and snapshot.name not in self.listed:
                return f"snapshot {snapshot.name} is lost"
        return None

# SPDX-License-Identifier: Apache-2.0
"""A small NBD client and an oracle: what tools/powercut and tools/kill9 share.

The client speaks fixed newstyle with simple replies over a UNIX socket (proto.md). The oracle knows,
for every 512-byte sector that was ever written, which versions the contract of FLUSH and FUA allows
it to hold: the one known to be durable, or any that was issued after it.
Standard library only. Every wait is bounded.
"""
import collections
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time

SECTOR = 512
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_ZEROES = 0, 1, 2, 3, 4, 6
CMD_RESIZE = 8
FLAG_FUA, FLAG_NO_HOLE = 1, 2
HAS_FLUSH, HAS_FUA, HAS_TRIM, HAS_ZEROES, HAS_MULTI_CONN = 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8
BASE_VERSION = 1            # what every sector of a generated base image holds
ZERO = frozenset([0])


# A request of the oracle: its place in the order of issue, its sectors, whether it is a trim.
Ticket = collections.namedtuple("Ticket", "sequence sectors is_trim")


class ServerGone(Exception):
    """The server closed the connection or did not answer in time."""


def sector_content(sector, version):
    """The 512 bytes that stand for `version` in `sector`; version 0 is zeroes."""
    return struct.pack("<QQ", sector, version) * 32 if version else bytes(SECTOR)


def sector_version(sector, data):
    """The version that 512 bytes of `sector` hold, or None when they hold nothing we wrote there."""
    version = struct.unpack_from("<Q", data, 8)[0]
    return version if data == sector_content(sector, version) else None


class Connection:
    """One NBD connection with simple replies and several requests in flight."""

    def __init__(self, path, export="", timeout=30):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.lengths = {}                                # cookie of a READ -> byte count
        self.cookie = 0
        try:
            self.sock.connect(path)
            if self.receive(16) != b"NBDMAGICIHAVEOPT":
                raise ServerGone("this is no NBD server")
            self.receive(2)
            name = export.encode()
            self.sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT"
                              + struct.pack(">III", 7, 6 + len(name), len(name)) + name + bytes(2))
            while True:
                _, _, kind, length = struct.unpack(">QIII", self.receive(20))
                body = self.receive(length)
                if kind == 3 and body[:2] == b"\0\0":
                    self.size, self.flags = struct.unpack(">QH", body[2:12])
                elif kind == 1:
                    break
                elif kind & 1 << 31:
                    raise ServerGone(f"the export is refused: {body.decode(errors='replace')}")
        except OSError as error:
            raise ServerGone(str(error)) from error

    def receive(self, count):
        parts = []
        while count:
            try:
                part = self.sock.recv(count)
            except OSError as error:
                raise ServerGone(str(error)) from error
            if not part:
                raise ServerGone("the server closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def send(self, command, offset=0, length=0, payload=b"", flags=0):
        """Sends a request and returns its cookie."""
        self.cookie += 1
        header = struct.pack(">IHHQQI", 0x25609513, flags, command, self.cookie, offset, length)
        if command == CMD_READ:
            self.lengths[self.cookie] = length
        try:
            self.sock.sendall(header + payload)
        except OSError as error:
            raise ServerGone(str(error)) from error
        return self.cookie

    def reply(self):
        """Waits for one reply; returns (cookie, errno, data)."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        if magic != 0x67446698:
            raise ServerGone(f"reply magic {magic:#x}")
        length = self.lengths.pop(cookie, 0)
        return cookie, error, b"" if error else self.receive(length)

    def read(self, offset, length):
        cookie = self.send(CMD_READ, offset, length)
        got, error, data = self.reply()
        if (got, error) != (cookie, 0):
            raise ServerGone(f"read at {offset} failed with errno {error}")
        return data

    def read_into(self, buffer, offset):
        """Reads into the memoryview `buffer`; returns 0 or the errno that the server answered with."""
        cookie = self.send(CMD_READ, offset, len(buffer))
        del self.lengths[cookie]
        magic, error, got = struct.unpack(">IIQ", self.receive(16))
        if magic != 0x67446698 or got != cookie:
            raise ServerGone(f"reply magic {magic:#x}, cookie {got}")
        while not error and len(buffer):
            count = self.sock.recv_into(buffer)
            if not count:
                raise ServerGone("the server closed the connection")
            buffer = buffer[count:]
        return error

    def is_readable(self):
        return bool(select.select([self.sock], [], [], 0)[0])

    def close(self):
        try:
            self.send(CMD_DISC)
        except ServerGone:
            pass
        self.sock.close()


class Oracle:
    """Which versions each sector may hold, and since when: what proto.md promises, no more and no less.

    history[sector] is a list of (sequence, set of versions) in the order of issue; the caller sees to
    it that two requests on one sector are never in flight together. durable[sector] is the sequence
    that is known to be durable: everything issued before it is forbidden from then on.

    The rules, all of proto.md, "Ordering of messages and writes" unless another place is named:
      F1  Write commands that were answered before a FLUSH was sent are durable when it is answered; those that
          were not may be there or not. (A client knows no more: a reply on its way counts as not answered.)
      F2  A WRITE or WRITE_ZEROES with FUA is durable when it is answered. Nothing is said of other sectors, or of
          writes before it that reach further.
      F3  After a TRIM the client must not assume what is there ("NBD_CMD_TRIM"); our server promises the old bytes or
          zeroes, never older ones. What a READ behind its answer finds is what the TRIM did: that stays.
      F4  FUA on a TRIM: "if the command does not in fact write data [...] the server MAY ignore this bit" ("Command
          flags"). So where the READ finds zeroes that were not there before, they are durable; where it finds what was
          there, or where nobody looked, the answer promises nothing of unflushed writes before it.
      F5  What was not sent yet cannot be there: `allowed` takes the last sequence that had been issued.
    tools/lib/oraclefaults.py breaks each of these rules and sees that it is noticed.
    """

    def __init__(self, initial=lambda sector: 0):
        self.initial = initial                           # sector -> version before the first write
        self.history = {}
        self.durable = {}
        self.acknowledged = {}                           # sector -> sequence, since the last flush
        self.issued = []                                 # the sectors of each sequence, from 1 on
        self.version = BASE_VERSION

    def past(self, sector):
        return self.history.setdefault(sector, [(0, frozenset([self.initial(sector)]))])

    def issue(self, sectors, versions):
        """Notes that `sectors` are being set to one of `versions`; None: a trim, the old value or 0."""
        self.issued.append(sectors)
        for sector in sectors:
            past = self.past(sector)
            past.append((len(self.issued), past[-1][1] | ZERO if versions is None else versions))
        return Ticket(len(self.issued), sectors, versions is None)

    def acknowledge(self, ticket, is_durable=False):
        """Notes the answer; `is_durable`: the request had FUA."""
        for sector in ticket.sectors:
            if is_durable and not ticket.is_trim:        # F2, F4
                self.durable[sector] = ticket.sequence
            else:
                self.acknowledged[sector] = ticket.sequence

    def settle(self, ticket, versions, is_durable=False):
        """Notes what a READ behind the answer of a trim found in its sectors, before the next request to them.

        Raises RuntimeError when it is neither what was there nor zeroes.
        """
        for sector, version in zip(ticket.sectors, versions):
            past = self.history[sector]
            sequence, possible = past[-1]
            if sequence != ticket.sequence:
                raise ValueError(f"sector {sector} was written again before its trim was settled")
            if version not in possible:
                raise RuntimeError(f"sector {sector} reads as version {version} behind a trim, allowed {sorted(possible)[:8]}")
            past[-1] = (sequence, frozenset([version]))
            if is_durable and version == 0 and 0 not in past[-2][1]:
                self.durable[sector] = sequence

    def begin_flush(self):
        """What a flush sent now has to make durable."""
        covered, self.acknowledged = self.acknowledged, {}
        return covered

    def end_flush(self, covered):
        for sector, sequence in covered.items():
            self.durable[sector] = max(sequence, self.durable.get(sector, 0))

    def allowed(self, sector, durable, issued=None):
        """The versions `sector` may hold when the sequences in `durable` are known to be durable, and nothing behind
        the sequence `issued` was sent."""
        least = durable.get(sector, 0)
        most = len(self.issued) if issued is None else max(issued, least)
        versions = set()
        for sequence, values in self.history[sector]:
            if least <= sequence <= most:
                versions |= values
        return versions

    def observe(self, sector, version):
        """After a restart: `sector` was read as `version`, so that is what it holds from now on."""
        self.history[sector] = [(0, frozenset([version]))]
        self.durable.pop(sector, None)


class Load:
    """Random writes, zeroes, trims, FUA and flushes, several in flight on several connections.

    `on_durable` is called after each reply that makes something durable, with the oracle up to date; `on_issue` before
    each request that changes sectors. Most trims are read back, before anything else is sent for their sectors.
    """

    def __init__(self, connections, seed, oracle, on_durable=lambda: None, on_issue=lambda: None, depth=8, hot_sectors=0,
                 writes_only=False, whole_sectors=0):
        self.connections, self.oracle, self.on_durable, self.on_issue = connections, oracle, on_durable, on_issue
        self.random, self.depth = random.Random(seed), depth
        self.flight = [{} for _ in connections]          # cookie -> (kind, ticket, whether it has FUA)
        self.busy = {}                                   # sector in flight -> whether it may be changing
        self.counts = {"write": 0, "zero": 0, "trim": 0, "flush": 0, "fua": 0, "resize": 0}
        self.sizes = [connections[0].size]               # asked for, in order
        self.size = connections[0].size                  # answered
        sectors = connections[0].size // SECTOR
        self.span = min(hot_sectors or sectors, sectors)
        self.start = self.random.randrange(0, sectors - self.span + 1, 8)
        self.whole = whole_sectors                       # every other request is one or more of so many
        self.flags = connections[0].flags
        if writes_only:
            self.flags &= ~(HAS_TRIM | HAS_ZEROES)

    def step(self):
        """Issues one request, then takes replies until fewer than `depth` are in flight."""
        index = self.random.randrange(len(self.connections))
        kind = self.random.random()
        if kind < 0.07:
            self.flush(index)
        else:
            self.write(index, kind)
        self.collect(self.depth - 1)

    def pick(self):
        """A range of sectors: mostly 4 KiB blocks, sometimes odd sectors, sometimes long."""
        low, high = -(-self.start // self.whole) if self.whole else 0, (self.start + self.span) // (self.whole or 1)
        if self.whole and low < high and self.random.random() < 0.5:
            first = self.random.randrange(low, high)
            return range(first * self.whole, min(first + self.random.randint(1, 3), high) * self.whole)
        kind = self.random.random()
        if kind < 0.65:
            count, unit = 8 * self.random.randint(1, 4), 8
        elif kind < 0.9:
            count, unit = self.random.randint(1, 20), 1
        else:
            count, unit = 8 * self.random.randint(16, 48), 8
        count = min(count, self.span)
        first = self.start + self.random.randrange(0, self.span - count + 1, unit)
        return range(first, first + count)

    def write(self, index, kind):
        sectors, connection = self.pick(), self.connections[index]
        if any(sector in self.busy for sector in sectors):
            self.collect(0)
        offset, length = sectors[0] * SECTOR, len(sectors) * SECTOR
        fua = FLAG_FUA if self.flags & HAS_FUA and self.random.random() < 0.08 else 0
        self.on_issue()
        if kind < 0.16 and self.flags & HAS_TRIM:
            name, ticket = "trim", self.oracle.issue(sectors, None)
            cookie = connection.send(CMD_TRIM, offset, length, flags=fua)
        elif kind < 0.28 and self.flags & HAS_ZEROES:
            name, ticket = "zero", self.oracle.issue(sectors, ZERO)
            hole = self.random.choice([0, FLAG_NO_HOLE])
            cookie = connection.send(CMD_ZEROES, offset, length, flags=fua | hole)
        else:
            self.oracle.version += 1
            version = self.oracle.version
            name, ticket = "write", self.oracle.issue(sectors, frozenset([version]))
            payload = b"".join(sector_content(sector, version) for sector in sectors)
            cookie = connection.send(CMD_WRITE, offset, length, payload, fua)
        self.counts[name] += 1
        self.counts["fua"] += bool(fua)
        for sector in sectors:
            self.busy[sector] = True
        self.flight[index][cookie] = (name, ticket, bool(fua))

    def flush(self, index):
        if self.has_in_flight("flush"):
            return
        self.counts["flush"] += 1
        covered = self.oracle.begin_flush()
        cookie = self.connections[index].send(CMD_FLUSH)
        self.flight[index][cookie] = ("flush", covered, False)

    def has_in_flight(self, name):
        return any(kind == name for flight in self.flight for kind, _, _ in flight.values())

    def resize(self, index, growth):
        """Asks for a disk that is `growth` bytes larger, one resize at a time."""
        if self.has_in_flight("resize"):
            return
        self.counts["resize"] += 1
        self.sizes.append(self.sizes[-1] + growth)
        cookie = self.connections[index].send(CMD_RESIZE, self.sizes[-1])
        self.flight[index][cookie] = ("resize", self.sizes[-1], False)

    def collect(self, most):
        """Takes replies until at most `most` requests are in flight."""
        while sum(map(len, self.flight)) > most:
            waiting = {c.sock: i for i, c in enumerate(self.connections) if self.flight[i]}
            ready = select.select(list(waiting), [], [], 60)[0]
            if not ready:
                raise ServerGone("no reply in 60 seconds")
            for sock in ready:
                self.take(waiting[sock])

    def take(self, index):
        cookie, error, data = self.connections[index].reply()
        kind, ticket, is_fua = self.flight[index].pop(cookie)
        if error:
            raise RuntimeError(f"a {kind} failed with errno {error}")
        if kind == "flush":
            self.oracle.end_flush(ticket)
        elif kind == "resize":
            self.size = ticket
        elif kind == "settle":
            self.oracle.settle(ticket, [sector_version(sector, data[place * SECTOR:(place + 1) * SECTOR])
                                        for place, sector in enumerate(ticket.sectors)], is_fua)
        else:
            self.oracle.acknowledge(ticket, is_fua)
            if kind == "trim" and self.random.random() < 0.8:
                return self.read_back(index, ticket, is_fua)
        if kind not in ("flush", "resize"):
            for sector in ticket.sectors:
                del self.busy[sector]
        if kind in ("flush", "resize") or is_fua:
            self.on_durable()

    def read_back(self, index, ticket, is_fua):
        """Looks at what a trim did; its sectors stay busy, but change no more."""
        for sector in ticket.sectors:
            self.busy[sector] = False
        cookie = self.connections[index].send(CMD_READ, ticket.sectors[0] * SECTOR, len(ticket.sectors) * SECTOR)
        self.flight[index][cookie] = ("settle", ticket, is_fua)


def wait_for_socket(path, process, timeout=20):
    """Waits until something accepts connections at `path`."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise ServerGone(f"the server ended with {process.returncode} before it listened")
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(path)
            return
        except OSError:
            time.sleep(0.01)
        finally:
            probe.close()
    raise ServerGone(f"nothing listens on {path}")


def end_cleanly_when_told():
    """SIGTERM ends this program through its `finally` blocks, so that no server is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def end(process, timeout=30):
    """Ends a process that we started: TERM, then KILL. Returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def make_base(path, form, size):
    """Makes a base image whose every sector holds BASE_VERSION, but for some runs of zeroes."""
    raw = path + ".tmp"
    with open(raw, "wb") as file:
        for sector in range(size // SECTOR):
            file.write(sector_content(sector, base_version(sector)))
    command = ["qemu-img", "convert", "-f", "raw", "-O", form, raw, path]
    subprocess.run(command, check=True, timeout=120)
    subprocess.run(["rm", raw], check=True)


def base_version(sector):
    """The version of `sector` in a generated base: every 8th 64 KiB is zeroes."""
    return 0 if sector // 128 % 8 == 5 else BASE_VERSION

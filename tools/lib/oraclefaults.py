# SPDX-License-Identifier: Apache-2.0
"""Proves that the oracle (nbdload.py) is as strict as the protocol and no stricter: what tools/powercut --self-test asks.

Each line below is a sequence of requests to one sector and what the sector may hold behind a cut, to the version: a rule
that is loosened allows more, one that is tightened less. The names F1 to F5 are those of the oracle's rules.
"""
from nbdload import Oracle, ZERO

S = range(1)
OLD = 7                                           # what the sector held before the first request


class Client:
    """What a client does with the one sector."""

    def __init__(self):
        self.oracle, self.tickets, self.covered = Oracle(lambda _: OLD), {}, None

    def do(self, line):
        """`w1`: sends a WRITE of version 1; `z`: zeroes; `t`: a trim. `a`: the answer of the last one, `A`: with FUA.
        `r0`: a READ behind a trim's answer finds version 0; `R0`: the trim had FUA. `f`: a FLUSH is sent; `F`: is answered.
        `o1`: another sector is written with version 1, and answered with FUA."""
        oracle = self.oracle
        for word in line.split():
            kind, version = word[0], int(word[1:] or 0)
            if kind in "wzt":
                self.last = oracle.issue(S, {"w": frozenset([version]), "z": ZERO, "t": None}[kind])
            elif kind in "aA":
                oracle.acknowledge(self.last, kind == "A")
            elif kind in "rR":
                oracle.settle(self.last, [version], kind == "R")
            elif kind == "f":
                self.covered = oracle.begin_flush()
            elif kind == "F":
                oracle.end_flush(self.covered)
            elif kind == "o":
                oracle.acknowledge(oracle.issue(range(1, 2), frozenset([version])), True)
            else:
                raise ValueError(word)


# the rule, the requests, what the sector may hold
LINES = [
    ("nothing was asked of it", "o1", {OLD}),
    ("F1 an answer alone promises nothing", "w1 a", {OLD, 1}),
    ("F1 a flush makes durable what was answered before it was sent", "w1 a f F", {1}),
    ("F1 zeroes are data", "w1 a z a f F", {0}),
    ("F1 a flush that was not answered promises nothing", "w1 a f", {OLD, 1}),
    ("F1 a flush does not cover what was not answered when it was sent", "w1 f a F", {OLD, 1}),
    ("F1 the next flush does", "w1 f a F f F", {1}),
    ("F1 what is sent later may be there", "w1 a f F w2", {1, 2}),
    ("F1 what was written over before the flush is gone", "w1 a w2 a f F", {2}),
    ("F1 what was written over and is durable is gone", "w1 a f F w2 a f F", {2}),
    ("F1 a flush's answer does not take back a younger promise", "w1 a f w2 A F", {2}),
    ("F2 FUA makes durable by itself", "w1 A", {1}),
    ("F2 FUA of zeroes, too", "z A", {0}),
    ("F2 FUA forbids all that came before it", "w1 a w2 A", {2}),
    ("F2 FUA of another sector promises nothing here", "w1 a o1", {OLD, 1}),
    ("F3 a trim leaves the bytes, or zeroes", "w1 a f F t", {0, 1}),
    ("F3 and no older ones", "w1 a f F w2 a f F t a", {0, 2}),
    ("F3 a flush behind a trim forbids older bytes", "w1 a t a f F", {0, 1}),
    ("F3 what the READ found is what it did: zeroes", "w1 a f F t a r0 f F", {0}),
    ("F3 what the READ found is what it did: nothing", "w1 a f F t a r1", {1}),
    ("F3 a trim that did nothing makes the bytes no more durable", "w1 a t a r1", {OLD, 1}),
    ("F3 but a flush does", "w1 a t a r1 f F", {1}),
    ("F3 before the flush the bytes may be there", "w1 a f F t a r0", {0, 1}),
    ("F4 FUA on a trim that nobody looked at promises nothing", "w1 a t A", {OLD, 0, 1}),
    ("F4 nor does it take a promise back", "w1 a f F w2 a f F t A", {0, 2}),
    ("F4 FUA on a trim that zeroed is durable", "w1 a t A R0", {0}),
    ("F4 on durable bytes, too", "w1 a f F t A R0", {0}),
    ("F4 FUA on a trim that did nothing promises nothing of the write before it", "w1 a t A R1", {OLD, 1}),
    ("F4 nor where zeroes were there before, and not durable", "z a t A R0", {OLD, 0}),
    ("F4 nor where they may have been there before", "w1 a f F t a t A R0", {0, 1}),
    ("F4 a flush makes it durable all the same", "w1 a t A f F", {0, 1}),
]
# requests, the last sequence that had been sent, what the sector may hold
BOUNDS = [
    ("F5 what was not sent cannot be there", "w1 a f F z a", 1, {1}),
    ("F5 from when it is sent it can", "w1 a f F z a", 2, {0, 1}),
    ("F5 before the first request it is as it was", "w1 a z a", 0, {OLD}),
    ("F5 what is durable was sent", "w1 A", 0, {1}),
]
WRONG = [("F3 a trim that shows older bytes", "w1 a w2 a t a r1"), ("F3 a trim that shows other bytes", "w1 a t a r9")]


def faults():
    """(name, None or what is wrong) of each line."""
    for name, line, *bound, expected in [*LINES, *BOUNDS]:
        client = Client()
        client.do(line)
        found = client.oracle.allowed(0, client.oracle.durable, *bound) if 0 in client.oracle.history else {OLD}
        yield name, None if found == expected else f"{line} allows {sorted(found)}, not {sorted(expected)}"
    for name, line in WRONG:
        try:
            Client().do(line)
            yield name, f"{line} is not noticed"
        except RuntimeError:
            yield name, None

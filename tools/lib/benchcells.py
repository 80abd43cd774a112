# SPDX-License-Identifier: Apache-2.0
"""What tools/bench measures: workloads, the cells made of them, and the sets of cells for a purpose.

A cell is a workload on a kind of image at a place with the cores in one of three ways: server and client
apart (each pinned to a core of its own), unpinned, or shared (both pinned to the server's core). Its name
is workload/image/place, and /unpinned or /shared behind it.
"""
import collections

from benchimages import CHAINS, COPIED

Workload = collections.namedtuple("Workload", "name client rw block depth jobs extra", defaults=("",))
PACED = "-paced"


class Cell(collections.namedtuple("Cell", "workload image place cores load", defaults=("apart", None))):
    """`load` is what a paced cell asks of every server, in requests a second; the run finds it."""

    @property
    def name(self):
        ending = "" if self.cores == "apart" else "/" + self.cores
        return f"{self.workload.name}/{self.image}/{self.place}{ending}"

    @property
    def is_paced(self):
        return self.workload.name.endswith(PACED)

    @property
    def full(self):
        """The cell whose throughput says how much a paced one may ask for."""
        return self._replace(workload=WORKLOADS[self.workload.name.removesuffix(PACED)], load=None)

    @property
    def is_timed(self):
        """Does the load end by the clock, and not when it has gone over the image once?"""
        return self.image != "new" and self.image not in COPIED


def random_workloads():
    for rw, extra in (("randread", ""), ("randwrite", ""), ("randrw", "--rwmixread=70")):
        for jobs in (1, 4):
            for depth in (1, 16, 64):
                name = f"{rw}-4k-qd{depth}" + ("-4conn" if jobs == 4 else "")
                yield Workload(name, "fio", rw, "4k", depth, jobs, extra)


def paced_workloads():
    """Latency at the same load, where the servers can be made busy: the targets' depths."""
    for workload in random_workloads():
        if workload.depth > 1 and workload.rw != "randrw":
            yield workload._replace(name=workload.name + PACED)


WORKLOADS = {w.name: w for w in [
    *random_workloads(),
    *paced_workloads(),                                  # after those that tell their loads
    Workload("randread-64k-qd16", "fio", "randread", "64k", 16, 1),
    Workload("seqread-128k-qd16", "fio", "read", "128k", 16, 1),
    Workload("seqwrite-128k-qd16", "fio", "write", "128k", 16, 1),
    Workload("seqread-1m-qd8", "fio", "read", "1m", 8, 1),
    Workload("seqwrite-1m-qd8", "fio", "write", "1m", 8, 1),
    # 4 KiB into each 64 KiB cluster, once: fio skips 60 KiB after each write
    Workload("firstwrite-4k-qd1", "fio", "write:60k", "4k", 1, 1),
    Workload("firstwrite-4k-qd16", "fio", "write:60k", "4k", 16, 1),
    Workload("flush-4k-qd4", "fio", "randwrite", "4k", 4, 1, "--fsync=4"),
    Workload("trim-64k-qd16", "fio", "randtrim", "64k", 16, 1),
    # where the sparse image has data, and one L2 table for each 4 of them; from the server's first request
    Workload("cold-4k-qd1", "fio", "randread", "4k", 1, 1, "--blockalign=128m"),
    Workload("cold-4k-qd16", "fio", "randread", "4k", 16, 1, "--blockalign=128m"),
    Workload("copy-out", "nbdcopy", "read", "256k", 64, 1),
    Workload("copy-in", "nbdcopy", "write", "256k", 64, 1),
    # the shapes of headers, by a client that is faster than fio's (lib/readpump.c)
    *(Workload(f"pump-{shape}-qd{depth}", "pump", shape, "4k", depth, 1)
      for shape in ("simple", "structured", "extended") for depth in (16, 64)),
    Workload("startup", "startup", "read", "4k", 1, 1),
    Workload("create", "create", "", "", 0, 0),
    *(Workload(f"idle-{count}", "idle", "", "", 0, count) for count in (1, 10, 100, 1000)),
    Workload("wake", "wake", "sleep", "4k", 1, 1),
    Workload("wake-spin", "wake", "spin", "4k", 1, 1),
]}
FIRST_WRITES = ["firstwrite-4k-qd1", "firstwrite-4k-qd16", "flush-4k-qd4", "seqwrite-1m-qd8", "copy-in"]
COPIES = {"raw-copy": ["trim-64k-qd16"], "full-copy": ["trim-64k-qd16"],
          "sparse": ["cold-4k-qd1", "cold-4k-qd16"]}
COSTS = {"startup": ["raw", "base", "chain64", "chain1000"], "create": ["base", "chain64", "chain500"],
         "idle-1": ["base"], "idle-10": ["base"], "idle-100": ["base"], "idle-1000": ["base"]}
WAKES = ["wake", "wake-spin"]
SECRET = ["randread-4k-qd1", "randread-4k-qd16", "randwrite-4k-qd16", "seqread-1m-qd8", "seqwrite-1m-qd8"]

QUICK = ["wake/none/tmpfs", "randread-4k-qd1/raw/tmpfs", "randread-4k-qd16/raw/tmpfs",
         "randread-4k-qd16-paced/raw/tmpfs", "randwrite-4k-qd16/raw/tmpfs",
         "randread-4k-qd64-4conn/raw/tmpfs", "randread-4k-qd16/full/tmpfs", "randwrite-4k-qd16/full/tmpfs",
         "randread-4k-qd16/chain1/tmpfs", "randread-4k-qd16/chain64/tmpfs", "firstwrite-4k-qd16/new/tmpfs",
         "flush-4k-qd4/full/disk", "copy-out/full/tmpfs", "startup/base/tmpfs", "create/base/tmpfs",
         "idle-1/base/tmpfs", "idle-10/base/tmpfs"]
BUSY = [f"{rw}-4k-qd{depth}{connections}" for rw in ("randread", "randwrite")
        for connections in ("", "-4conn") for depth in (16, 64)]
ISSUE3 = [f"{name}/{image}" for image, names in (
    ("none/tmpfs", "wake wake-spin"), ("none/tmpfs/shared", "wake"),
    ("raw/tmpfs", " ".join(BUSY + [name + PACED for name in BUSY])
     + " randread-4k-qd1 randwrite-4k-qd1 randrw-4k-qd16 seqread-128k-qd16 seqread-1m-qd8 seqwrite-1m-qd8"
     " copy-out copy-in startup"),
    ("raw/tmpfs/shared", "randread-4k-qd1"),
    ("full/tmpfs", "randread-4k-qd16 randwrite-4k-qd16 flush-4k-qd4"),
    ("chain1/tmpfs", "randread-4k-qd16"), ("chain8/tmpfs", "randread-4k-qd16"),
    ("chain64/tmpfs", "randread-4k-qd16 startup create"), ("chain500/tmpfs", "randread-4k-qd16 create"),
    ("chain1000/tmpfs", "randread-4k-qd16 startup"),
    ("new/tmpfs", "firstwrite-4k-qd1 firstwrite-4k-qd16"), ("full-copy/tmpfs", "trim-64k-qd16"),
    ("sparse/tmpfs", "cold-4k-qd1 cold-4k-qd16"),
    ("base/tmpfs", "startup create idle-1 idle-10 idle-100 idle-1000"),
    ("raw/disk", "randread-4k-qd16"), ("full/disk", "flush-4k-qd4"), ("new/disk", "flush-4k-qd4"),
    ("base/disk", "create")) for name in names.split()]


def is_in(workload, image, place):
    """Is there a cell of `workload`, a load, on `image` at `place`?"""
    if image == "tls":
        return workload.name in SECRET and place == "tmpfs"
    if workload.client == "pump":
        return image == "raw" and place == "tmpfs"
    if image in COPIES:
        return workload.name in COPIES[image]
    if workload.name.startswith(("trim", "cold")):
        return False
    if workload.name.endswith(PACED):
        return image == "raw" and place == "tmpfs"
    if image in CHAINS:
        return workload.name in ("randread-4k-qd16", "randread-4k-qd1") and place == "tmpfs"
    if place == "disk" and (workload.jobs > 1 or workload.rw == "randrw"):
        return False
    if image == "new":
        return workload.name in FIRST_WRITES
    if image == "base" and ("write" in workload.rw or workload.rw == "randrw"):
        return False
    return not workload.name.startswith("first")


def all_cells():
    loads = [w for w in WORKLOADS.values() if w.client in ("fio", "nbdcopy", "pump")]
    cells = [Cell(WORKLOADS[name], "none", "tmpfs", cores) for name in WAKES for cores in ("apart", "shared")
             if (name, cores) != ("wake-spin", "shared")]  # one that never sleeps would starve its client
    cells += [Cell(w, image, place) for place in ("tmpfs", "disk")
              for image in ("raw", "tls", "full", "base", "new", *COPIES, *CHAINS)
              for w in loads if is_in(w, image, place)]
    cells += [Cell(WORKLOADS[name], image, "tmpfs", "unpinned")
              for name in ("randread-4k-qd16", "randwrite-4k-qd16") for image in ("raw", "full")]
    cells += [Cell(WORKLOADS[name], "raw", "tmpfs", "shared")
              for name in ("randread-4k-qd1", "randwrite-4k-qd1")]
    cells += [Cell(WORKLOADS[name], image, "tmpfs") for name, images in COSTS.items() for image in images]
    return cells + [Cell(WORKLOADS[name], "base", "disk") for name in ("startup", "create")]


def groups(cells):
    """Cells that are compared with one another, in lists: their rounds take turns."""
    families = collections.defaultdict(list)
    for cell in cells:
        family = {"raw": "one file", "full": "one file"}.get(cell.image, cell.image)
        if cell.image in CHAINS:
            family = "chain"
        families[cell.workload, family, cell.place, cell.cores].append(cell)
    return list(families.values())

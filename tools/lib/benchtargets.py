# SPDX-License-Identifier: Apache-2.0
"""The targets for the product's speed, and whether a run of tools/bench holds them.

`verdicts` gets the rounds of a run ({cell: {server: [figures]}}) and returns one row for each target and
cell that was measured. A comparison is the median of the rounds' ratios, which ran in turn; "best peer" is
the peer with the best median of that figure in the cell, for each figure anew. The floor is no peer.
p99 is judged in the paced cells, where all servers had the same load; one that did not carry it
(KEPT_LOAD) is no peer there.
"""
import statistics

PEERS = ("qemu-nbd", "qemu-nbd-io_uring", "nbdkit", "nbd-server")
RANDOM = [f"{kind}-4k-qd{depth}{connections}/raw/tmpfs" for kind in ("randread", "randwrite", "randrw")
          for depth in (16, 64) for connections in ("", "-4conn")]
SINGLE = [f"{kind}-4k-qd1{connections}/raw/tmpfs" for kind in ("randread", "randwrite", "randrw")
          for connections in ("", "-4conn")]
PACED = [f"{kind}-4k-qd{depth}{connections}-paced/raw/tmpfs" for kind in ("randread", "randwrite")
         for connections in ("", "-4conn") for depth in (16, 64)]
KEPT_LOAD = 0.95                                          # of what a paced cell asks for
STREAMS = [f"{name}/raw/tmpfs" for name in ("seqread-128k-qd16", "seqwrite-128k-qd16", "seqread-1m-qd8",
                                            "seqwrite-1m-qd8", "copy-out", "copy-in")]
FULL = [f"{name}/full/tmpfs" for name in ("randread-4k-qd16", "randwrite-4k-qd16")]
FIRST = [f"firstwrite-4k-qd{depth}/new/tmpfs" for depth in (1, 16)]
FLUSH = [f"flush-4k-qd4/{image}/{place}" for image in ("raw", "full", "new") for place in ("tmpfs", "disk")]
START = [f"startup/{image}/tmpfs" for image in ("raw", "base", "chain64", "chain1000")]
CREATE = [f"create/{image}/{place}" for image in ("base", "chain64", "chain500") for place in ("tmpfs", "disk")]


def chain(depth):
    return f"randread-4k-qd16/chain{depth}/tmpfs"


def values(results, cell, server, key):
    return [r[key] for r in results.get(cell, {}).get(server, []) if r.get(key) is not None]


def best_peer(results, cell, key, is_more_better):
    """The peer with the best median of `key`, or None when no peer was measured."""
    medians = {peer: statistics.median(found) for peer in PEERS
               if (found := values(results, cell, peer, key))}
    if not medians:
        return None
    return (max if is_more_better else min)(medians, key=medians.get)


def ratio(results, key, ours, theirs):
    """The median of the rounds' ratios of `key`; each side is (cell, server)."""
    sides = [results.get(cell, {}).get(server, []) for cell, server in (ours, theirs)]
    pairs = [(a[key], b[key]) for a, b in zip(*sides) if a.get(key) is not None and b.get(key)]
    return statistics.median(a / b for a, b in pairs) if pairs else None


class Judge:
    """Collects one row for each target and cell that was measured."""

    def __init__(self, results):
        self.results, self.rows = results, []

    def holds(self, target, cell, value, least=None, most=None, unit="x", against="", share=None):
        """`value` has to be at least, or at most, the limit."""
        if value is None:
            return
        limit = least if least is not None else most
        self.rows.append({
            "target": target, "cell": cell, "against": against, "value": value, "limit": limit, "unit": unit,
            "is_least": least is not None, "holds": value >= limit if least is not None else value <= limit,
            "floor_share": share, "off_by": abs(value / limit - 1)})

    def against(self, target, cell, key, peer, least=None, most=None, server="strata"):
        """A figure of ours by that of a peer, or of the best of them."""
        results = self.results
        name = best_peer(results, cell, key, least is not None) if peer == "best" else peer
        if name is None:
            return
        share = ratio(results, key, (cell, server), (cell, "floor")) if least is not None else None
        self.holds(target, cell, ratio(results, key, (cell, server), (cell, name)), least, most, "x", name, share)

    def median(self, target, cell, key, most, unit):
        found = values(self.results, cell, "strata", key)
        self.holds(target, cell, statistics.median(found) if found else None, most=most, unit=unit)


def verdicts(results):
    judge = Judge(results)
    for part in (of_random_loads, of_latency, of_streams, of_overlays, of_costs):
        part(judge)
    return judge.rows


def of_random_loads(judge):
    for cell in RANDOM:
        judge.against("IOPS, raw, QD16 and QD64", cell, "score", "qemu-nbd", least=1.7)
        judge.against("the same, best peer", cell, "score", "best", least=1.25)
    for cell in SINGLE:
        judge.against("IOPS, QD1, best peer", cell, "score", "best", least=1.0)
        judge.against("the same with --poll 50", cell, "score", "best", least=1.8, server="strata-poll")
    for cell in RANDOM + SINGLE:
        limit = 0.6 if cell in SINGLE else 0.45
        judge.against("server CPU for each request", cell, "cpu_us_per_request", "qemu-nbd", most=limit)
        judge.against("the same, best peer", cell, "cpu_us_per_request", "best", most=0.75)


def of_latency(judge):
    """p99 where everyone had the same load and carried it."""
    for cell in PACED:
        carried = {server: statistics.median(shares) for server in judge.results.get(cell, {})
                   if (shares := [r["iops"] / r["load"] for r in judge.results[cell][server] if r.get("load")])}
        if carried.get("strata", 1) < KEPT_LOAD:
            judge.holds("the load of the cell is carried", cell, carried["strata"], least=KEPT_LOAD)
        fit = {server: rounds for server, rounds in judge.results.get(cell, {}).items()
               if carried.get(server, 0) >= KEPT_LOAD or server == "strata"}
        of_fit = Judge({cell: fit})
        of_fit.against("p99 at the same load, best peer", cell, "p99_us", "best", most=1.0)
        judge.rows += of_fit.rows


def of_streams(judge):
    for cell in STREAMS:
        judge.against("MB/s, best peer", cell, "bytes_per_second", "best", least=1.1)
        judge.against("the same, CPU", cell, "cpu_us_per_request", "qemu-nbd", most=0.5)


def of_overlays(judge):
    results, shallow = judge.results, (chain(1), "strata")
    for cell in FULL:
        raw = cell.replace("/full/", "/raw/")
        judge.holds("full overlay against raw", cell, ratio(results, "score", (cell, "strata"), (raw, "strata")),
                    least=0.97, against="raw")
    for depth, limit in ((64, 0.97), (1000, 0.93)):
        deep = (chain(depth), "strata")
        judge.holds("chain against depth 1", deep[0], ratio(results, "score", deep, shallow), least=limit,
                    against="chain1")
        judge.holds("the same, peak memory", deep[0], ratio(results, "rss_mib", deep, shallow), most=1.5,
                    against="chain1")
    for depth, limit in ((64, 5), (500, 50)):
        judge.against("chain against qemu-nbd", chain(depth), "score", "qemu-nbd", least=limit)
    for cell in FIRST:
        judge.against("first write into an overlay", cell, "score", "qemu-nbd", least=1.5)
    for cell in FLUSH:
        judge.against("flush-heavy", cell, "score", "qemu-nbd", least=1.0)


def of_costs(judge):
    for cell in START:
        judge.median("exec to first read", cell, "ms", 10, "ms")
    for cell in CREATE:
        judge.median("create an overlay", cell, "ms", 5, "ms")
    judge.median("idle RSS, one export", "idle-1/base/tmpfs", "rss_mib", 12, "MiB")
    for count in (10, 100, 1000):
        judge.median("private memory, each further export", f"idle-{count}/base/tmpfs", "private_mib", 1, "MiB")


def table(rows):
    """The verdicts as a Markdown table, with one line of counts below it."""
    lines = ["| target | cell | against | needed | measured | of the floor | holds |",
             "|---|---|---|--:|--:|--:|---|"]
    for row in rows:
        sign, unit = "≥" if row["is_least"] else "≤", "" if row["unit"] == "x" else " " + row["unit"]
        share = "-" if row["floor_share"] is None else format(row["floor_share"], ".2f")
        verdict = "yes" if row["holds"] else f"**no**, by {row['off_by']:.0%}"
        lines.append(f"| {row['target']} | {row['cell']} | {row['against'] or '-'} "
                     f"| {sign} {row['limit']:g}{unit} | {row['value']:.2f}{unit} | {share} | {verdict} |")
    count = sum(row["holds"] for row in rows)
    return "\n".join(lines) + f"\n\n{count} of {len(rows)} targets hold."

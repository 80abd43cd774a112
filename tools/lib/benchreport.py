# SPDX-License-Identifier: Apache-2.0
"""What a run of tools/bench has found: medians and ratios, Markdown tables, and the files of --output."""
import json
import os
import statistics

import benchplot
import benchtargets
import benchwake
from benchcells import COSTS

KEYS = ("iops", "load", "bytes_per_second", "p50_us", "p99_us", "fairness", "cpu_us_per_request", "rss_mib",
        "threads", "ready_ms", "ms", "pss_mib", "private_mib", "attached_mib", "exports",
        "round_trip_us")


def median_of(rounds, key):
    values = [r[key] for r in rounds if r.get(key) is not None]
    return statistics.median(values) if values else None


def summarise(raw):
    """One row for each server of each cell."""
    rows = []
    for cell, rounds_of in raw.items():
        reference = rounds_of.get("qemu-nbd", [])
        for server, rounds in rounds_of.items():
            row = {"cell": cell, "server": server, "rounds": sum("error" not in r for r in rounds)}
            row.update((key, median_of(rounds, key)) for key in KEYS)
            for name, key in (("ratio", "score"), ("cpu_ratio", "cpu_us_per_request"), ("p99_ratio", "p99_us")):
                ratios = [a[key] / b[key] for a, b in zip(rounds, reference)
                          if a.get(key) is not None and b.get(key)]
                row[name] = statistics.median(ratios) if ratios else None
            row["errors"] = [r["error"] for r in rounds if "error" in r]
            row["notes"] = [r["note"] for r in rounds if r.get("note")]
            rows.append(row)
    return rows


def text(value, form):
    return "-" if value is None else format(value, form)


def markdown(titles, numbers_from, lines):
    """A table; the columns from `numbers_from` on are figures."""
    marks = ["---" if index < numbers_from else "--:" for index in range(len(titles))]
    return "\n".join("| " + " | ".join(cells) + " |" if cells is not marks else "|" + "|".join(cells) + "|"
                     for cells in [titles, marks, *lines])


def with_words(row, cells):
    """The line of a row, and below it what failed and what its reader has to know."""
    yield cells
    for words in row["errors"][:1] + row["notes"][:1]:
        yield ["", words] + [""] * (len(cells) - 2)


def load_table(rows):
    titles = ["cell", "server", "IOPS", "asked", "MB/s", "p50 µs", "p99 µs", "fairness",
              "server CPU µs/request", "RSS MiB", "× qemu-nbd", "CPU × qemu-nbd"]
    lines = []
    for row in rows:
        rate = row["bytes_per_second"]
        lines += with_words(row, [
            row["cell"], row["server"], text(row["iops"], ",.0f"), text(row["load"], ",.0f"),
            text(rate / 1e6 if rate else None, ",.0f"), text(row["p50_us"], ".0f"), text(row["p99_us"], ".0f"),
            text(row["fairness"], ".2f"), text(row["cpu_us_per_request"], ".1f"), text(row["rss_mib"], ".0f"),
            text(row["ratio"], ".2f"), text(row["cpu_ratio"], ".2f")])
    return markdown(titles, 2, lines)


def cost_table(rows):
    titles = ["cell", "server", "ready ms", "first read, created ms", "exports", "RSS MiB", "PSS MiB", "private MiB",
              "RSS MiB with a client", "× qemu-nbd"]
    lines = []
    for row in rows:
        times = [text(row[key], ".1f") for key in ("ready_ms", "ms")]
        memory = [text(row[key], ".1f") for key in ("rss_mib", "pss_mib", "private_mib", "attached_mib")]
        lines += with_words(row, [row["cell"], row["server"], *times, text(row["exports"], ".0f"), *memory,
                                  text(row["ratio"], ".2f")])
    return markdown(titles, 2, lines)


def tables(rows, raw):
    """The floor, the loads, the costs without a load, and the targets that can be judged."""
    costs = [row for row in rows if row["cell"].split("/")[0] in COSTS]
    loads = [row for row in rows if row not in costs]
    parts = [benchwake.sentences(rows)]
    parts += [form(part) for part, form in ((loads, load_table), (costs, cost_table),
                                            (benchtargets.verdicts(raw), benchtargets.table)) if part]
    return "\n\n".join(part for part in parts if part)


def write_files(args, rows, raw, notes):
    """bench.json, bench.md and bench.svg in the folder of --output."""
    if not args.output:
        return
    os.makedirs(args.output, exist_ok=True)
    machine = {"cores": os.cpu_count(), "kernel": os.uname().release,
               "load_average": os.getloadavg(), "rounds": args.rounds, "seconds": args.seconds,
               "size_mib": args.size}
    everything = {"machine": machine, "notes": notes, "rows": rows, "raw": raw,
                  "targets": benchtargets.verdicts(raw)}
    head = "\n\n".join(["# tools/bench", json.dumps(machine), *notes])
    for name, content in (("bench.json", json.dumps(everything, indent=1)),
                          ("bench.md", f"{head}\n\n{tables(rows, raw)}\n"),
                          ("bench.svg", benchplot.plot(rows))):
        with open(os.path.join(args.output, name), "w") as file:
            file.write(content)

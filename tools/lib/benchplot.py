# SPDX-License-Identifier: Apache-2.0
"""The plot of a run of tools/bench, as SVG: grouped bars, a group for each cell and a bar for each server.

Four panels. Throughput beside server CPU for each request, both relative to qemu-nbd (the line at 1);
p99 at the same load, relative to qemu-nbd, beside server CPU; chains, in IOPS on a logarithmic axis, as
qemu-nbd is a hundred times slower there; costs without load. Cells without a qemu-nbd are in the tables only.
A bar that is longer than its axis is cut, with an arrow; the figure beside it is always the true one.
"""
import math
from xml.sax.saxutils import escape

from benchcells import COSTS, PACED

COLOURS = {"strata": "#00875a", "strata-other": "#36b37e", "strata-poll": "#57d9a3", "strata-sleep": "#abf5d1",
           "qemu-nbd": "#42526e", "qemu-nbd-io_uring": "#97a0af", "nbdkit": "#ff991f", "nbdkit-cow": "#ffc400",
           "nbd-server": "#2684ff", "floor": "#bf2600", "wake-floor": "#bf2600"}
LABELS, LEFT, RIGHT, AXIS, WIDTH = 12, 285, 670, 290, 1040
BAR, GAP, FONT = 11, 12, 11


class Axis:
    """Maps figures to columns from `left` on: linear from 0, or logarithmic from a power of 10."""

    def __init__(self, left, values, limit=None, is_log=False):
        self.left, self.is_log = left, is_log
        top = max([*values, 1.05])
        if is_log:
            self.low = 10 ** math.floor(math.log10(min(values)))
            self.high = 10 ** math.ceil(math.log10(top))
        else:
            self.low, self.high = 0, min(top, limit or top) * 1.02

    def width(self, value):
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return AXIS * math.log(value / self.low) / math.log(self.high / self.low)
        return AXIS * value / self.high

    def ticks(self):
        if self.is_log:
            return [10 ** power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, math.inf) if self.high / step <= 8)
        return [step * index for index in range(int(self.high / step) + 1)]


class Drawing:
    """Lines of SVG from top to bottom."""

    def __init__(self):
        self.y, self.parts = 0, []

    def text(self, x, y, words, extra=""):
        self.parts.append(f'<text x="{x:.0f}" y="{y:.0f}" {extra}>{escape(words)}</text>')

    def box(self, x, y, width, height, colour):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" '
                          f'fill="{colour}"/>')

    def line(self, x, top, bottom, colour):
        self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.0f}" y2="{bottom:.0f}" '
                          f'stroke="{colour}"/>')

    def bar(self, axis, server, value, form):
        """One bar at the present height, with its figure behind it."""
        is_cut = value > axis.high
        width = axis.width(value)
        self.box(axis.left, self.y, max(width, 1), BAR - 1, COLOURS.get(server, "#555"))
        self.text(axis.left + width + 4, self.y + BAR - 2, ("▸ " if is_cut else "") + format(value, form),
                  'stroke="#fff" stroke-width="3" paint-order="stroke"')  # readable across the grid

    def svg(self):
        body = "\n".join(self.parts)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.y:.0f}" '
                f'font-family="sans-serif" font-size="{FONT}"><rect width="{WIDTH}" height="{self.y:.0f}" '
                f'fill="#fff"/>\n{body}\n</svg>\n')


def legend(drawing, servers):
    x, y = LABELS, drawing.y + 14
    for server in servers:
        drawing.box(x, y - 9, 10, 10, COLOURS.get(server, "#555"))
        drawing.text(x + 14, y, server)
        x += 30 + 7 * len(server)
    drawing.y = y + 12


def panel(drawing, title, columns, rows):
    """Groups of bars; `columns` are (what the axis is, key, is logarithmic, limit, form of figures)."""
    rows = [row for row in rows if row[columns[0][1]] is not None]
    if not rows:
        return
    drawing.y += 16
    drawing.text(LABELS, drawing.y, title, 'font-size="14" font-weight="bold"')
    drawing.y += 18
    axes = []
    for left, (name, key, is_log, limit, form) in zip((LEFT, RIGHT), columns):
        values = [row[key] for row in rows if row[key]]
        if values:
            axes.append((Axis(left, values, limit, is_log), key, form))
            drawing.text(left, drawing.y, name, 'fill="#555"')
    drawing.y += 18
    top, place = drawing.y, len(drawing.parts)           # the grid goes behind the bars
    for cell in dict.fromkeys(row["cell"] for row in rows):
        group(drawing, cell, [row for row in rows if row["cell"] == cell], axes)
    grid = Drawing()
    for axis, key, _ in axes:
        draw_grid(grid, axis, top, drawing.y - GAP / 2, key.endswith("ratio"))
    drawing.parts[place:place] = grid.parts


def group(drawing, cell, rows, axes):
    drawing.text(LABELS, drawing.y + BAR - 2, cell, 'font-weight="bold"')
    if len(rows) == 1:
        drawing.text(LABELS, drawing.y + 2 * BAR, rows[0]["server"], 'fill="#555"')
    start = drawing.y
    for row in rows:
        for axis, key, form in axes:
            if row[key] is not None:
                drawing.bar(axis, row["server"], row[key], form)
        drawing.y += BAR
    drawing.y = max(drawing.y, start + 2 * BAR) + GAP


def draw_grid(grid, axis, top, bottom, has_one):
    for tick in axis.ticks():
        x = axis.left + axis.width(tick)
        grid.line(x, top - 4, bottom, "#e4e4e4")
        grid.text(x, top - 6, f"{tick:,.10g}", 'text-anchor="middle" fill="#777" font-size="9"')
    if has_one:
        grid.line(axis.left + axis.width(1), top - 4, bottom, "#42526e")


def plot(rows):
    chains = [row for row in rows if "/chain" in row["cell"] and row["iops"]]
    paced = [row for row in rows if PACED + "/" in row["cell"]]
    costs = [row for row in rows if row["cell"].split("/")[0] in COSTS]
    loads = [row for row in rows if row not in chains and row not in paced and row not in costs]
    cpu = ("server CPU for each request, × qemu-nbd (less is better)", "cpu_ratio", False, 3, ".2f")
    drawing = Drawing()
    legend(drawing, [s for s in COLOURS if any(row["server"] == s for row in rows) and s != "wake-floor"])
    panel(drawing, "Throughput", [("× qemu-nbd (more is better)", "ratio", False, 6, ".2f"), cpu], loads)
    panel(drawing, "p99 at the same load",
          [("× qemu-nbd (less is better)", "p99_ratio", False, 4, ".2f"), cpu], paced)
    panel(drawing, "Chains of overlays: random reads a second, logarithmic",
          [("IOPS (more is better)", "iops", True, None, ",.0f"),
           ("server CPU µs for each request, logarithmic (less is better)", "cpu_us_per_request", True, None,
            ",.1f")],
          chains)
    panel(drawing, "Starts, new overlays, idle exports: how many times faster, smaller",
          [("× qemu-nbd (more is better)", "ratio", False, 6, ".2f")], costs)
    drawing.y += 8
    return drawing.svg()

# SPDX-License-Identifier: Apache-2.0
"""The wake floor: what a request at QD1 costs when only the socket's ping-pong is done (lib/wakefloor.c).

No server that sleeps between requests answers faster than `wake` on this machine; `wake-spin` is the same
with a server that never sleeps, the most that polling can give. The client of both sleeps in recv(2); fio's
goes through poll(2) and libnbd as well, so that servers stay somewhat behind the floor.
"""
import json
import os
import shutil
import subprocess

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wakefloor.c")
SECONDS = 0.4
NO_COMPILER = "the wake floor is not measured: there is no C compiler (cc)"


def has_compiler():
    return shutil.which("cc") is not None


def measure(folder, cores, way):
    """Round trips a second and what one costs; `way` is sleep or spin. Compiles the program when needed."""
    program = os.path.join(folder, "wakefloor")
    if not os.path.exists(program):
        run(["cc", "-O2", "-o", program, SOURCE], 60)
    figures = json.loads(run([program, str(SECONDS), *("-1" if core is None else str(core) for core in cores),
                              way], SECONDS + 30))
    rate = figures["requests"] / figures["seconds"]
    return {**figures, "iops": rate, "bytes_per_second": rate * 4096, "score": rate,
            "round_trip_us": 1e6 / rate}


def run(words, limit_seconds):
    done = subprocess.run(words, capture_output=True, text=True, timeout=limit_seconds)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"{words[0]}: {' '.join(lines[:3])}")
    return done.stdout


def sentences(rows):
    """What readers of the QD1 rows should have in mind, from the summary of the run."""
    lines = []
    for row in rows:
        if row.get("round_trip_us") is None:
            continue
        name, _, _, *cores = row["cell"].split("/")
        where = "on one shared core" if cores else "server and client apart"
        how = "a server that never sleeps" if name == "wake-spin" else "both sleep"
        lines.append(f"the wake floor: {row['round_trip_us']:.1f} µs a round trip, "
                     f"{row['cpu_us_per_request']:.1f} µs server CPU ({where}, {how})")
    return "\n".join(lines)

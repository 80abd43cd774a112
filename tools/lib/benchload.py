# SPDX-License-Identifier: Apache-2.0
"""One measurement of tools/bench: a server is started, loaded by fio or nbdcopy, and what it cost is noted.

fio's nbd engine makes one connection for each job, and its jobs are threads of one process: at 4
connections four threads take turns on the one core that the client has, so a percentile there holds the
waiting of a thread for its core too, and `fairness`, the IOPS of the slowest job by those of the fastest,
says whether the server (or the client's scheduler) favoured one.

A paced cell gives every server the same load: fio's --rate_iops with rate_process=poisson, divided by the
jobs. fio waits for its replies before it sleeps until the next request is due, and then sends at once, up
to the depth, what has come due meanwhile.

Percentiles are of fio's lat, from before a request is sent to its reply. Its clat begins only after
send(2), which pays for waking the server and, on a shared core, for all that the server does at once; the
JSON has its p99 as clat_p99_us. Standard library only.
"""
import collections
import json
import os
import signal
import subprocess
import time

import benchcosts
import benchwake
import nbdload
from benchimages import COPIED
from benchservers import CREATORS, daemon_pid

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
PUMP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "readpump.c")


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    # with the children it has waited for: nbd-server forks one for each connection
    return sum(map(int, fields[11:15])) / TICKS


def process_facts(pid):
    """The peak of the resident memory in bytes, and the count of threads."""
    with open(f"/proc/{pid}/status") as file:
        facts = dict(line.split(":", 1) for line in file if ":" in line)
    return int(facts["VmHWM"].split()[0]) * 1024, int(facts["Threads"])


def cores(cell, args):
    """The cores of server and client; None: any."""
    return {"apart": (args.server_core, args.client_core), "unpinned": (None, None),
            "shared": (args.server_core, args.server_core)}[cell.cores]


def pinned(words, core):
    return words if core is None else ["taskset", "-c", str(core), *words]


def uri_of(image):
    if image.is_secret:
        return f"nbds+unix:///?socket={image.socket}&tls-verify-peer=0"
    return f"nbd+unix:///{'disk' if image.export else ''}?socket={image.socket}"


def ramp(cell, args):
    return args.ramp if cell.is_timed and cell.image != "sparse" else 0


def fio_words(cell, image, args, is_floor):
    w = cell.workload
    ends = ["--ioengine=libaio", "--direct=1", f"--filename={image.path}"] if is_floor else [
        "--ioengine=nbd", f"--uri={uri_of(image)}"]
    words = ["fio", "--name=bench", *ends, f"--rw={w.rw}", f"--bs={w.block}", f"--iodepth={w.depth}",
             f"--numjobs={w.jobs}", "--output-format=json+", "--lat_percentiles=1", "--clat_percentiles=1",
             "--randrepeat=0", "--thread"]
    if w.rw != "randtrim":
        words.append("--norandommap")
    if w.extra:
        words.append(w.extra)
    if cell.load:
        words += [f"--rate_iops={max(1, int(cell.load / w.jobs))}", "--rate_process=poisson"]
    longest = 4 if w.name.startswith("first") or cell.image in COPIED else 1
    words.append(f"--runtime={int(args.seconds * (1 if cell.is_timed else longest) * 1000)}ms")
    if cell.is_timed:
        words += ["--time_based", f"--ramp_time={int(ramp(cell, args) * 1000)}ms"]
    return words


def percentiles(parts, key, shares):
    """Of the requests of all parts together, from fio's histograms of `key`, in microseconds."""
    bins = collections.Counter()
    for part in parts:
        for nanoseconds, count in part[key].get("bins", {}).items():
            bins[int(nanoseconds)] += count
    total, seen, found = sum(bins.values()), 0, []
    for nanoseconds in sorted(bins):
        seen += bins[nanoseconds]
        while len(found) < len(shares) and seen >= total * shares[len(found)]:
            found.append(nanoseconds / 1000)
    return found or [None] * len(shares)


def fio_figures(jobs):
    """What fio's JSON says of all jobs together."""
    sides = [[job[side] for side in ("read", "write", "trim") if job[side]["total_ios"]] for job in jobs]
    parts = [part for of_job in sides for part in of_job]
    if not parts:
        raise RuntimeError("fio: no request was answered")
    p50, p99 = percentiles(parts, "lat_ns", (0.5, 0.99))
    figures = {"requests": sum(part["total_ios"] for part in parts),
               "iops": sum(part["iops"] for part in parts),
               "bytes_per_second": sum(part["bw_bytes"] for part in parts), "p50_us": p50, "p99_us": p99,
               "clat_p99_us": percentiles(parts, "clat_ns", (0.99,))[0]}
    if len(jobs) > 1:
        rates = [sum(part["iops"] for part in of_job) for of_job in sides]
        figures["fairness"] = min(rates) / max(rates)
    return figures


def run_fio(cell, image, args, is_floor=False):
    done = subprocess.run(pinned(fio_words(cell, image, args, is_floor), cores(cell, args)[1]),
                          env={**os.environ, "HOME": image.folder}, capture_output=True, text=True, timeout=args.seconds * 4 + args.ramp + 60)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError("fio: " + " ".join(lines[:3]))
    jobs = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    figures = fio_figures(jobs)
    if is_floor:
        cpu = sum((job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000 for job in jobs)
        figures["cpu_us_per_request"] = cpu / max(1, figures["requests"])
    if cell.load:
        figures["load"] = cell.load
    return figures


def run_nbdcopy(cell, image, args):
    uri = uri_of(image)
    ends = [uri, "null:"] if cell.workload.rw == "read" else [image.raw, uri]
    words = pinned(["nbdcopy", "--no-extents", "--request-size=262144", *ends], cores(cell, args)[1])
    seconds = benchcosts.run_seconds(words, 300, subprocess.DEVNULL)
    count = args.size * MIB // 262144
    return {"requests": count, "iops": count / seconds, "bytes_per_second": args.size * MIB / seconds}


def run_pump(cell, image, args):
    """lib/readpump.c, which is compiled when needed."""
    program = os.path.join(image.folder, "readpump")
    if not os.path.exists(program):
        benchwake.run(["cc", "-O2", "-o", program, PUMP], 60)
    words = [program, image.socket, "disk" if image.export else "", cell.workload.rw,
             str(cell.workload.depth), str(args.seconds)]
    figures = json.loads(benchwake.run(pinned(words, cores(cell, args)[1]), args.seconds + 60))
    rate = figures["requests"] / figures["seconds"]
    return {"requests": figures["requests"], "iops": rate, "bytes_per_second": rate * 4096}


def measure(cell, server, image, args):
    """One measurement; `score` is the figure that ratios are made of, more is better."""
    image.renew()
    image.export = server.name == "nbd-server"
    client = cell.workload.client
    with open(os.path.join(image.folder, "server.log"), "wb") as log:
        if client == "wake":
            return benchwake.measure(image.folder, cores(cell, args), cell.workload.rw)
        if client == "startup":
            return benchcosts.start_up(server, image, cores(cell, args), log)
        if client == "create":
            return benchcosts.create(CREATORS[server.name], image, cores(cell, args), log)
        if client == "idle":
            return benchcosts.idle(server, image, cell.workload.jobs, log)
        if cell.is_paced and not cell.load:
            raise RuntimeError("no server could be loaded, so there is no load to pace")
        if server.name == "floor":
            figures = run_fio(cell, image, args, is_floor=True)
        else:
            figures = load(cell, server, image, args, log)
    figures["score"] = figures["iops"]
    return figures


def load(cell, server, image, args, log):
    """Starts the server, loads it, notes what it cost, ends it."""
    words = pinned(server.command(image), cores(cell, args)[0])
    process = benchcosts.spawn(words, image.folder, None, log)
    pid, is_daemon = process.pid, server.name == "nbd-server"
    try:
        if is_daemon:
            pid = daemon_pid(process, image)
        nbdload.wait_for_socket(image.socket, None if is_daemon else process)
        before, started = cpu_seconds(pid), time.monotonic()
        client = {"fio": run_fio, "nbdcopy": run_nbdcopy, "pump": run_pump}[cell.workload.client]
        figures = client(cell, image, args)
        if is_daemon:
            time.sleep(0.1)                              # until it has waited for its children
        cpu = cpu_seconds(pid) - before
        elapsed = time.monotonic() - started
        peak, threads = process_facts(pid)
        # the CPU of fio's ramp is in `cpu` and its requests are not in `requests`: scale it out
        if cell.workload.client == "fio" and cell.is_timed:
            cpu *= args.seconds / (args.seconds + ramp(cell, args))
        figures.update(cpu_us_per_request=cpu * 1e6 / max(1, figures["requests"]),
                       rss_mib=peak / MIB, threads=threads, wall_seconds=elapsed)
        return figures
    finally:
        nbdload.end(process)
        if is_daemon and pid != process.pid:
            os.kill(pid, signal.SIGTERM)
            wait_until_gone(pid)                         # its TCP port has to be free again
            if os.path.exists(image.pid_file):
                os.unlink(image.pid_file)                # else its end does it


def wait_until_gone(pid, limit_seconds=5):
    """Of a process that is no child of ours."""
    end = time.monotonic() + limit_seconds
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.005)

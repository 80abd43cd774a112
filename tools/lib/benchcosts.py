# SPDX-License-Identifier: Apache-2.0
"""What an export costs before any load: its start, the making of an overlay, the memory of idle ones.

Each function returns the figures of one measurement for tools/bench, `score` among them (more is better).
Programs are started without a wrapper, on the core that this process had when it started them, so that
nothing but fork, exec and the program itself is in the time. Standard library only.
"""
import contextlib
import os
import select
import shutil
import statistics
import subprocess
import time

import nbdload

REPEATS = 5                                               # starts in one measurement; the median counts
START_LIMIT_SECONDS = 60


@contextlib.contextmanager
def on_core(core):
    """What is started inside runs on `core`; this thread comes back to where it was allowed before."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spawn(words, folder, core, log):
    """Starts a server; its temporary files (the overlay of nbdkit) stay in `folder`."""
    with on_core(core):
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                env=dict(os.environ, TMPDIR=folder))


def run_seconds(words, limit_seconds, log):
    """Runs a program and returns its seconds. subprocess.run with a limit looks only every 50 ms."""
    started = time.monotonic()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        descriptor = os.pidfd_open(process.pid)
        try:
            select.select([descriptor], [], [], limit_seconds)
        finally:
            os.close(descriptor)
        seconds = time.monotonic() - started
        if process.poll() is None:
            raise RuntimeError(f"{words[0]} did not end in {limit_seconds} s")
    finally:
        nbdload.end(process)
    if process.returncode:
        raise RuntimeError(f"{words[0]} ended with {process.returncode}")
    return seconds


def connect_at_once(path, process):
    """The first connection that succeeds, tried without pause worth mentioning."""
    end = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < end:
        if os.path.exists(path):
            try:
                return nbdload.Connection(path)
            except nbdload.ServerGone:
                pass
        if process.poll() is not None:
            raise nbdload.ServerGone(f"the server ended with {process.returncode} before it listened")
        time.sleep(0.00005)
    raise nbdload.ServerGone(f"nothing listens on {path}")


def start_up(server, image, cores, log):
    """Milliseconds from before fork and exec to a negotiated connection, and to the first 4 KiB read."""
    ready, first = [], []
    for _ in range(REPEATS):
        image.renew()
        words = server.command(image)
        with on_core(cores[1]):
            started = time.monotonic()
            process = spawn(words, image.folder, cores[0], log)
            try:
                connection = connect_at_once(image.socket, process)
                ready.append((time.monotonic() - started) * 1000)
                connection.read(0, 4096)
                first.append((time.monotonic() - started) * 1000)
                connection.close()
            finally:
                nbdload.end(process)
    return {"ready_ms": statistics.median(ready), "ms": statistics.median(first),
            "score": 1000 / statistics.median(first)}


def create(words_of, image, cores, log):
    """Milliseconds in which a program makes an overlay on `image`, exec to exit."""
    path, times = os.path.join(image.folder, "created.qcow2"), []
    words = words_of(os.path.basename(image.path), path)
    for _ in range(REPEATS):
        if os.path.exists(path):
            os.unlink(path)
        with on_core(cores[0]):
            times.append(run_seconds(words, 60, log) * 1000)
    os.unlink(path)
    return {"ms": statistics.median(times), "score": 1000 / statistics.median(times)}


def memory_mib(pid):
    """Resident, proportional and private memory of a process, in MiB."""
    kib = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if rest.endswith("kB\n"):
                kib[name] = int(rest.split()[0])
    return kib["Rss"] / 1024, kib["Pss"] / 1024, (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


def aio_events(name="aio-nr"):
    """How much of the machine's fs.aio-max-nr is taken; with that name: how much there is."""
    with open(f"/proc/sys/fs/{name}") as file:
        return int(file.read())


def fitting(count, before):
    """How many of `count` exports the machine's AIO events suffice for, now that the first one runs.

    Returns the number and a note when it is less than asked: raising fs.aio-max-nr is for the machine's
    owner to do, not for a measurement.
    """
    limit, taken = aio_events("aio-max-nr"), aio_events()
    each = taken - before
    if each <= 0 or taken + each * (count - 1) <= limit:
        return count, None
    fit = 1 + (limit - taken) // each
    return fit, (f"{fit} of {count} exports: each takes {each} of the {limit} events of fs.aio-max-nr; "
                 f"{count} need {each * count}")


def idle(server, image, count, log):
    """Memory of `count` exports that no client has used: the median process, and the sum of PSS.

    `private_mib` is what one more costs: all that it shares is there already. `attached_mib` is the RSS of
    one of them with a client that has read 4 KiB and says nothing more.
    """
    images, processes = [image.numbered(number) for number in range(count)], []
    aio_before = aio_events()

    def start(one):
        processes.append(spawn(server.command(one), one.folder, None, log))

    def wait(one, process):
        nbdload.wait_for_socket(one.socket, process, START_LIMIT_SECONDS)

    try:
        images[0].renew()
        for one in images[1:]:
            one.forget_socket()
            shutil.copyfile(images[0].path, one.path)
        start(images[0])
        wait(images[0], processes[0])
        fit, note = fitting(count, aio_before)
        for one in images[1:fit]:
            start(one)
        for one, process in zip(images, processes):
            wait(one, process)
        time.sleep(0.2)
        return {**memory_of(processes, images[0]), "exports": fit, "note": note}
    finally:
        end_all(processes)
        for one in images:
            one.remove()
        end = time.monotonic() + 5                       # the kernel frees AIO contexts some time after exit
        while aio_events() > aio_before and time.monotonic() < end:
            time.sleep(0.02)


def memory_of(processes, first):
    """The figures of `idle` when all processes have started; `first` is the image of the first of them."""
    rss, pss, private = zip(*(memory_mib(process.pid) for process in processes))
    connection = nbdload.Connection(first.socket)
    connection.read(0, 4096)
    attached = memory_mib(processes[0].pid)[0]
    connection.close()
    return {"rss_mib": statistics.median(rss), "pss_mib": statistics.median(pss), "pss_sum_mib": sum(pss),
            "private_mib": statistics.median(private), "attached_mib": attached,
            "score": len(processes) / sum(pss)}


def end_all(processes):
    """Tells all before it waits for any."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        nbdload.end(process)

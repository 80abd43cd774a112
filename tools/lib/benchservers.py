# SPDX-License-Identifier: Apache-2.0
"""The servers that tools/bench compares: their command lines, and the cells each of them is measured in.

strata is what a user gets; strata-poll and strata-sleep are the same with --poll 50 and --poll 0, at QD1,
where polling matters. nbdkit and nbd-server use the page cache: on the disk they may beat the floor, which
is fio's libaio engine on the file itself and has no server. nbdkit-cow is nbdkit's cow filter on the raw
file; it keeps nothing, so flushes are not asked of it. wake-floor is lib/wakefloor.c.
"""
import collections
import os
import re
import time

from benchimages import CHAINS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("STRATA_BIN", os.path.join(ROOT, ".build", "release"))
OVERLAYS = "full base new full-copy sparse"

Server = collections.namedtuple("Server", "name images command")


def strata_words(folder, *options):
    def words(image):
        cache = ["--metadata-cache", "1M"] if image.kind == "sparse" else []
        secret = ["--tls-certificates", os.path.join(image.folder, "pki")] if image.is_secret else []
        return [os.path.join(folder, "stratad"), image.path, "--format", image.format,
                "--socket", image.socket, "--aio", "native", *cache, *secret, *options]
    return words


def qemu_words(aio):
    def words(image):
        source = ["-f", image.format, image.path]
        if image.kind == "sparse":                       # the same budget for tables as strata has
            source = ["--image-opts", "driver=qcow2,l2-cache-size=1M,file.driver=file,"
                      f"file.filename={image.path}"]
        secret = [] if not image.is_secret else [
            "--object", f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir={image.folder}/pki",
            "--tls-creds", "tls0"]
        return ["qemu-nbd", "-t", "-e", "16", *secret, "--cache=none", f"--aio={aio}", "--discard=unmap",
                "-k", image.socket, *source]
    return words


def nbdkit_words(image):
    secret = ["--tls=require", f"--tls-certificates={image.folder}/pki"] if image.is_secret else []
    return ["nbdkit", "-f", "-U", image.socket, *secret, "file", "file=" + image.path]


def nbd_server_config(image):
    path = os.path.join(image.folder, "nbd-server.conf")
    with open(path, "w") as file:
        file.write(f"[generic]\nunixsock = {image.socket}\nlistenaddr = 127.0.0.1\nport = 29809\n"
                   f"[disk]\nexportname = {image.path}\nflush = true\nfua = true\ntrim = true\n")
    return path


def daemon_pid(process, image):
    """The process id of a server that puts itself into the background."""
    process.wait(10)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with open(image.pid_file) as file:
                return int(file.read())
        except (OSError, ValueError):
            time.sleep(0.02)
    raise RuntimeError("nbd-server wrote no pid file")


def strata_server(name, folder, *options, images=f"raw tls raw-copy {OVERLAYS} {' '.join(CHAINS)}"):
    return Server(name, images, strata_words(folder, *options))


SERVERS = [
    strata_server("strata", BIN),
    strata_server("strata-poll", BIN, "--poll", "50", images="raw full"),
    strata_server("strata-sleep", BIN, "--poll", "0", images="raw"),
    Server("qemu-nbd", f"raw tls raw-copy {OVERLAYS} {' '.join(CHAINS[:-1])}", qemu_words("native")),
    Server("qemu-nbd-io_uring", f"raw raw-copy {OVERLAYS}", qemu_words("io_uring")),
    Server("nbdkit", "raw tls raw-copy", nbdkit_words),
    Server("nbdkit-cow", "base new", lambda i: [
        "nbdkit", "-f", "-U", i.socket, "--filter=cow", "file", "file=" + i.raw]),
    Server("nbd-server", "raw", lambda i: [
        "nbd-server", "-C", nbd_server_config(i), "-p", i.pid_file]),
    Server("floor", "raw", None),
    Server("wake-floor", "none", None),
]
# a set that has to fit its minutes compares overlays with the first qemu-nbd, which is what the targets name
ISSUE3_IMAGES = {"qemu-nbd-io_uring": "raw raw-copy base"}
QUICK_SERVERS = ("strata", "strata-other", "strata-poll", "qemu-nbd", "wake-floor")
CREATORS = {
    "strata": lambda base, path: [os.path.join(BIN, "strata"), "create", "-q", "-f", "qcow2", "-b", base,
                                  "-F", "qcow2", path],
    "qemu-nbd": lambda base, path: ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2",
                                    path],
}


def serves(server, cell):
    """Is `server` measured in `cell`?"""
    name, workload = server.name, cell.workload
    if workload.client == "create":
        return name in CREATORS and (name == "strata" or cell.image != "chain500")
    if cell.image not in server.images.split():
        return False
    if workload.client == "pump":
        if name in ("strata-poll", "strata-sleep", "floor"):
            return False
        # nbd-server knows simple replies only, and nobody but strata extended headers
        return workload.rw == "simple" or name.startswith("strata") or (
            workload.rw == "structured" and name != "nbd-server")
    if workload.client == "idle":
        return name.startswith("strata") if workload.jobs > 100 else name != "qemu-nbd-io_uring"
    if name in ("strata-poll", "strata-sleep"):
        return workload.client == "fio" and re.search(r"-qd1(-|$)", workload.name) is not None
    if name == "floor":
        return workload.client == "fio" and cell.cores == "apart" and workload.jobs == 1 and not cell.is_paced
    if name == "nbdkit-cow":
        return not workload.name.startswith("flush")
    if workload.client == "startup":
        return name != "nbd-server"
    return True

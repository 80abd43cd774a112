# SPDX-License-Identifier: Apache-2.0
"""The image files that tools/bench measures: raw data, overlays on it, long chains, a sparse 1 TiB.

Kinds: raw; tls (the same file, behind TLS with certificates); full (a qcow2 overlay with all of its clusters allocated); base (an empty overlay, all data in
its base); new (the same, fresh for each measurement); raw-copy and full-copy (copied for each measurement,
which wears them out); chainN (N empty overlays above the data); sparse (1 TiB, 4 KiB at each 128 MiB, so
that the L2 tables are 2048 clusters). Standard library and QEMU's tools only.
"""
import copy
import os
import subprocess

import nbdload

MIB = 1 << 20
SPARSE_STEP, SPARSE_SIZE = 128 * MIB, 1 << 40
CHAINS = ["chain1", "chain8", "chain64", "chain500", "chain1000"]
KINDS = ["raw", "tls", "full", "base", "new", "raw-copy", "full-copy", "sparse", *CHAINS]
RENEWED = ("base", "new")
COPIED = ("raw-copy", "full-copy")


class Image:
    """One image file of a kind at a place, as a server gets it."""

    def __init__(self, folder, kind):
        self.folder, self.kind, self.export = folder, kind, False
        self.format = "raw" if kind.startswith("raw") or kind == "tls" else "qcow2"
        self.path = os.path.join(folder, f"{kind}.{self.format}")
        if kind in CHAINS:
            self.path = os.path.join(folder, layer_name(int(kind[5:])))
        self.raw = os.path.join(folder, "raw.raw")
        self.is_secret = kind == "tls"
        if self.is_secret:
            self.path = self.raw
        self.socket = os.path.join(folder, "nbd.sock")
        self.pid_file = os.path.join(folder, "nbd.pid")

    def numbered(self, number):
        """The same kind of image with a file and a socket of its own."""
        other = copy.copy(self)
        other.path = os.path.join(self.folder, f"{self.kind}-{number}.{self.format}")
        other.socket = os.path.join(self.folder, f"nbd-{number}.sock")
        return other

    def renew(self):
        """An image that measurements must not wear out is made again before each of them."""
        self.forget_socket()
        if self.kind in RENEWED:
            self.remove()
            self.warm()
            command("qemu-img", "create", "-q", "-f", "qcow2", "-b", "data.qcow2", "-F", "qcow2", self.path)
        elif self.kind in COPIED:
            self.remove()
            command("cp", self.raw if self.kind == "raw-copy" else os.path.join(self.folder, "full.qcow2"),
                    self.path)
            command("sync", "-f", self.path)

    def warm(self):
        """Takes and gives back as much space as first writes will take. A virtual machine gives free memory
        back to its host, and the first server to touch it again would pay for all that follow."""
        path = os.path.join(self.folder, "warm")
        size = os.path.getsize(self.raw)
        with open(path, "wb") as file:
            for _ in range(size // MIB):
                file.write(bytes(MIB))
        os.unlink(path)

    def forget_socket(self):
        """Not every server removes its socket when it ends."""
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def remove(self):
        if os.path.exists(self.path):
            os.unlink(self.path)


def command(*words):
    subprocess.run(words, check=True, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def make_images(folder, size, kinds):
    """Fills `folder`: raw data that does not compress to nothing, and the same as qcow2."""
    if set(kinds) <= {"none"}:                           # cells without an image
        return
    raw = os.path.join(folder, "raw.raw")
    noise = os.urandom(MIB)
    with open(raw, "wb") as file:
        for number in range(size // MIB):
            file.write(noise[number % MIB:] + noise[:number % MIB])
    if "tls" in kinds:
        make_certificates(folder)
    if set(kinds) - {"raw", "tls", "raw-copy", "sparse"}:
        data, full = os.path.join(folder, "data.qcow2"), os.path.join(folder, "full.qcow2")
        command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, data)
        if set(kinds) & {"full", "full-copy"}:
            command("cp", data, full)
            command("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "data.qcow2", "-F", "qcow2", full)
    if set(kinds) & set(CHAINS):
        make_chain(folder, max(int(kind[5:]) for kind in kinds if kind in CHAINS))
    if "sparse" in kinds:
        make_sparse(folder)
    command("sync", "-f", folder)                        # no write-back under the first measurements


def make_certificates(folder):
    """An authority and a server's certificate in `pki`, and the authority's where libnbd looks for it when
    HOME is `folder`: fio's URIs may not name files."""
    pki = os.path.join(folder, "pki")
    client = os.path.join(folder, ".pki", "libnbd")
    os.makedirs(pki)
    os.makedirs(client)
    for name, template in (("ca", "cn=bench\nca\ncert_signing_key\n"),
                           ("server", "cn=localhost\ndns_name=localhost\ntls_www_server\n")):
        key, info = os.path.join(pki, f"{name}-key.pem"), os.path.join(pki, f"{name}.tmpl")
        with open(info, "w") as file:
            file.write(template)
        # the keys that qemu's and nbdkit's manuals make have 3072 bits, too
        command("certtool", "--generate-privkey", "--outfile", key)
        signer = ["--generate-self-signed"] if name == "ca" else [
            "--generate-certificate", "--load-ca-certificate", os.path.join(pki, "ca-cert.pem"),
            "--load-ca-privkey", os.path.join(pki, "ca-key.pem")]
        command("certtool", *signer, "--load-privkey", key, "--template", info,
                "--outfile", os.path.join(pki, f"{name}-cert.pem"))
    command("cp", os.path.join(pki, "ca-cert.pem"), client)


def layer_name(number):
    return f"layer-{number:04}.qcow2"


def make_chain(folder, depth):
    """Layers 1...depth, each an empty overlay on the one below; layer 1 is on the data.

    One is made by qemu-img, the others are copies of it with another name of the same length in them.
    """
    first = os.path.join(folder, layer_name(1))
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", "data.qcow2", "-F", "qcow2", first)
    if depth == 1:
        return
    second = os.path.join(folder, layer_name(2))
    command("qemu-img", "create", "-q", "-f", "qcow2", "-b", layer_name(1), "-F", "qcow2", second)
    with open(second, "rb") as file:
        model = file.read()
    for number in range(3, depth + 1):
        with open(os.path.join(folder, layer_name(number)), "wb") as file:
            file.write(model.replace(layer_name(1).encode(), layer_name(number - 1).encode()))


def make_sparse(folder):
    image = Image(folder, "sparse")
    command("qemu-img", "create", "-q", "-f", "qcow2", image.path, str(SPARSE_SIZE))
    process = subprocess.Popen(["qemu-nbd", "-t", "--cache=unsafe", "-f", "qcow2", "-k", image.socket,
                                image.path], stdin=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        nbdload.wait_for_socket(image.socket, process)
        connection = nbdload.Connection(image.socket)
        data = os.urandom(4096)
        for offset in range(0, SPARSE_SIZE, SPARSE_STEP):
            connection.send(nbdload.CMD_WRITE, offset, len(data), data)
            if connection.reply()[1]:
                raise nbdload.ServerGone(f"the sparse image cannot be written at {offset}")
        connection.close()
    finally:
        nbdload.end(process)

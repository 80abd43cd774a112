# SPDX-License-Identifier: Apache-2.0
"""QEMU's tools kept ready: what makes it cheap for tools/powercut to ask them about each of many thousand images.

`Program` runs a program's main in a fresh process for each call, without exec (tools/lib/resident.c; without a C
compiler it starts the program each time). `Reader` is one qemu-storage-daemon that opens image after image and hands
out what it reads over NBD. Both say what QEMU says, word for word. Every wait is bounded.
"""
import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import tempfile

import nbdload

REQUESTS, ANSWERS, OUTPUT = 198, 199, 200         # descriptors, as in resident.c
PIECE = 1 << 20                                   # longer reads make QEMU ask the kernel for memory each time
_library = None


def library():
    """The path of resident.c compiled, or "" when there is no compiler. Made once, before workers are forked."""
    global _library
    if _library is None:
        folder = tempfile.mkdtemp(prefix="resident-")
        path = os.path.join(folder, "resident.so")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resident.c")
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        made = compiler and subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", path, source, "-ldl"],
                                           check=False).returncode == 0
        _library = path if made else ""
    return _library


def remove_library():
    """Removes what `library` made."""
    global _library
    if _library:
        shutil.rmtree(os.path.dirname(_library), ignore_errors=True)
    _library = None


class Program:
    """One program of QEMU, to be run many times in the folder `folder`."""

    def __init__(self, path, folder, seconds=120, is_resident=True):
        self.path, self.folder, self.seconds = path, folder, seconds
        self.process = None
        if is_resident and library():
            self.start()

    def start(self):
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        self.output = os.memfd_create("output")

        def place():
            for descriptor, number in ((requests, REQUESTS), (answers, ANSWERS), (self.output, OUTPUT)):
                os.dup2(descriptor, number)

        self.process = subprocess.Popen([self.path], cwd=self.folder, preexec_fn=place, stdin=subprocess.DEVNULL,
                                        close_fds=False,
                                        env={**os.environ, "LD_PRELOAD": library()})
        os.close(requests)
        os.close(answers)

    def run(self, *words):
        """(exit status, what was printed); a program that died of a signal has the signal's number, negative."""
        if self.process is None:
            done = subprocess.run([self.path, *words], cwd=self.folder, stdout=subprocess.PIPE, check=False,
                                  stderr=subprocess.STDOUT, timeout=self.seconds)
            return done.returncode, done.stdout.decode(errors="replace")
        text = b"".join(word.encode() + b"\0" for word in words)
        os.write(self.requests, struct.pack("=I", len(text)) + text)
        if not select.select([self.answers], [], [], self.seconds)[0]:
            raise RuntimeError(f"{self.path} {' '.join(words)} takes more than {self.seconds} s")
        status = os.read(self.answers, 4)
        if len(status) != 4:
            raise RuntimeError(f"{self.path} went away")
        return (os.waitstatus_to_exitcode(*struct.unpack("=i", status)),
                os.pread(self.output, 1 << 20, 0).decode(errors="replace"))

    def close(self):
        if self.process is not None:
            for descriptor in (self.requests, self.answers, self.output):
                os.close(descriptor)
            self.process.wait(30)


class Reader:
    """A qemu-storage-daemon that runs in `folder` and reads one image at a time."""

    def __init__(self, folder, objects=()):
        self.socket = os.path.join(folder, "read.sock")
        words = [word for text in objects for word in ("--object", text)]
        self.daemon = subprocess.Popen(
            ["qemu-storage-daemon", *words, "--chardev", "stdio,id=monitor", "--monitor", "monitor", "--nbd-server",
             f"addr.type=unix,addr.path={self.socket}"],
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.buffered, self.turn, self.connection, self.size = b"", 0, None, 0
        self.deleted = None                              # the export that was deleted last
        self.line()
        self.ask({"execute": "qmp_capabilities"})

    def line(self):
        while b"\n" not in self.buffered:
            if not select.select([self.daemon.stdout], [], [], 60)[0]:
                raise RuntimeError("qemu-storage-daemon does not answer")
            more = os.read(self.daemon.stdout.fileno(), 1 << 16)
            if not more:
                raise RuntimeError("qemu-storage-daemon went away")
            self.buffered += more
        line, self.buffered = self.buffered.split(b"\n", 1)
        return json.loads(line)

    def ask(self, *commands):
        """The answers to `commands`, which are sent together."""
        self.daemon.stdin.write(b"".join(json.dumps(command).encode() + b"\n" for command in commands))
        self.daemon.stdin.flush()
        answers = []
        while len(answers) < len(commands):
            line = self.line()
            if "event" in line:
                self.event(line)
            else:
                answers.append(line)
        return answers

    def event(self, line):
        if line["event"] == "BLOCK_EXPORT_DELETED":
            self.deleted = line["data"]["id"]

    def open(self, options):
        """Opens the image that these blockdev options describe, instead of the one before. None, or what is wrong."""
        gone = self.closing()
        self.turn += 1
        name = f"n{self.turn}"
        answers = self.ask(*gone, {"execute": "blockdev-add",
                                   "arguments": {"node-name": name, "read-only": True, **options}},
                           {"execute": "block-export-add",
                            "arguments": {"type": "nbd", "id": name, "node-name": name, "name": name}})
        for answer in answers[:len(gone)]:
            if "error" in answer:
                raise RuntimeError(f"qemu-storage-daemon: {answer['error']['desc']}")
        for answer in answers[len(gone):]:
            if "error" in answer:
                if answer is answers[-1]:
                    self.ask({"execute": "blockdev-del", "arguments": {"node-name": name}})
                return answer["error"]["desc"]
        self.connection = nbdload.Connection(self.socket, name)
        self.size = self.connection.size
        return None

    def closing(self):
        """Commands that close the open image."""
        if self.connection is None:
            return []
        self.connection.close()
        self.connection = None
        name = f"n{self.turn}"
        self.delete_export(name)
        return [{"execute": "blockdev-del", "arguments": {"node-name": name}}]

    def delete_export(self, name):
        self.ask({"execute": "block-export-del", "arguments": {"id": name, "mode": "hard"}})
        while self.deleted != name:                      # until then the node is in use
            self.event(self.line())

    @contextlib.contextmanager
    def exported_bitmap(self, bitmap):
        """(What `--image-opts` takes to see a bitmap of the open image, None), or ("", what is wrong)."""
        node, name = f"n{self.turn}", f"b{self.turn}"
        answer, = self.ask({"execute": "block-export-add", "arguments": {
            "type": "nbd", "id": name, "node-name": node, "name": name, "bitmaps": [bitmap]}})
        if "error" in answer:
            yield "", answer["error"]["desc"]
            return
        try:
            yield f"driver=nbd,server.type=unix,server.path={self.socket},export={name}," \
                f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}", None
        finally:
            self.delete_export(name)

    def read_into(self, buffer, start):
        """Fills the memoryview `buffer` with the disk's bytes from `start` on. None, or what is wrong."""
        for offset in range(0, len(buffer), PIECE):
            error = self.connection.read_into(buffer[offset:offset + PIECE], start + offset)
            if error:
                return f"QEMU cannot read at {start + offset}: errno {error}"
        return None

    def close(self):
        if self.connection is not None:
            self.connection.close()
        nbdload.end(self.daemon)
        self.daemon.stdin.close()
        self.daemon.stdout.close()

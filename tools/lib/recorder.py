#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A folder that remembers everything that was done to its files: what tools/powercut lets programs write to.

  recorder.py FOLDER BACK LOG SIZE_MAX

Mounts a FUSE file system over FOLDER (one folder, files in it), keeps the contents in the folder BACK and appends
every write, zeroing, discard, flush and change of a name to LOG, in the order in which they took effect: one request
at a time, logged before it is answered. Ends when FOLDER is unmounted. It speaks to /dev/fuse itself: the FUSE export
of QEMU 7.2 overwrites the buffer of a write with that of the next when several are under way, which libaio does.

The log: 16 bytes (magic, entry count), then for each entry 40 bytes (start, length, flags, file, size of the data) and
the data; numbers are 64-bit little-endian. Zeroing and discard have no data. A flush is a barrier for its file only;
that of the folder (file 1) for names. Names: CREATE and UNLINK carry one, RENAME two with a 0 between. GROW: the
file ends at `start` from then on; SHRINK: so it does, and what was behind is gone.
Source: the kernel's fuse(4) protocol 7.31.
"""
import collections
import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
import time

MAGIC = 0x686F6C2D61727473
FLUSH, FUA, DISCARD, CREATE, RENAME, UNLINK, GROW, SHRINK = 1, 2, 4, 8, 16, 32, 64, 128    # flags of an entry
FOLDER = 1                                        # the file that is the folder itself
HEADER = struct.Struct("<QQQQQ")
WRITE_MAX = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LOOKUP, GETATTR, SETATTR, UNLINK_NAME, RENAME_NAME, OPEN, READ, WRITE, STATFS, RELEASE = 1, 3, 4, 10, 12, 14, 15, 16, 17, 18
FSYNC, FLUSH_FILE, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 20, 25, 26, 27, 28, 29, 30
ACCESS, CREATE_FILE, INTERRUPT, DESTROY, FALLOCATE, RENAME2, LSEEK = 34, 35, 36, 38, 43, 45, 46
FORGET, BATCH_FORGET = 2, 42
ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES = 1, 1 << 5, 1 << 15, 1 << 22
DIRECT_IO, PARALLEL_DIRECT_WRITES = 1, 1 << 6
SIZE_IS_SET = 1 << 3
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
NO_REPLACE = 1

Entry = collections.namedtuple("Entry", "start length flags data file")


class Log:
    """The log's writer."""

    def __init__(self, path):
        self.file = open(path, "w+b", buffering=0)
        self.count, self.end = 0, 16
        self.file.write(struct.pack("<QQ", MAGIC, 0))

    def add(self, file, start, length, flags, data=b""):
        os.pwrite(self.file.fileno(), HEADER.pack(start, length, flags, file, len(data)) + data, self.end)
        self.end += HEADER.size + len(data)
        self.count += 1
        os.pwrite(self.file.fileno(), struct.pack("<Q", self.count), 8)


def entry_count(path):
    """How many entries the log at `path` has now."""
    with open(path, "rb", buffering=0) as log:
        return struct.unpack("<QQ", log.read(16))[1]


def read_log(path):
    """The entries of a log, each an `Entry`."""
    with open(path, "rb") as log:
        magic, count = struct.unpack("<QQ", log.read(16))
        if magic != MAGIC:
            raise RuntimeError("this is no recorder log")
        for _ in range(count):
            start, length, flags, file, size = HEADER.unpack(log.read(HEADER.size))
            yield Entry(start, length, flags, log.read(size), file)


def names(entries, of_old=None):
    """The name of each file that has one after `entries`; `of_old`: the names before."""
    found = dict(of_old or {})
    for entry in entries:
        if entry.flags & CREATE:
            found[entry.file] = entry.data.decode()
        elif entry.flags & RENAME:
            new = entry.data.decode().split("\0")[1]
            found = {file: name for file, name in found.items() if name != new}
            found[entry.file] = new
        elif entry.flags & UNLINK:
            del found[entry.file]
    return found


class Mounted:
    """A recorder over the folder `path`, for a `with` statement."""

    def __init__(self, path, back, log, size_max):
        self.path, self.words = path, [path, back, log, str(size_max)]

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        self.recorder = subprocess.Popen([sys.executable, os.path.abspath(__file__), *self.words])
        end = time.monotonic() + 10
        while not os.path.ismount(self.path):
            if self.recorder.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError("the recorder did not start: is /dev/fuse there?")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        if os.path.ismount(self.path):
            unmount = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*unmount, self.path], check=False)
        try:
            self.recorder.wait(30)
        except subprocess.TimeoutExpired:
            self.recorder.kill()
            self.recorder.wait()


class File:
    """One file of the folder."""

    def __init__(self, number, back, log, size_max):
        self.number, self.back, self.log, self.size, self.size_max = number, back, log, 0, size_max

    def attributes(self):
        return attributes(self.number, self.size, os.fstat(self.back).st_blocks, 0o100600)

    def resize(self, size):
        if size > self.size_max:
            raise OSError(errno.ENOSPC, "the file may not grow further")
        if size < self.size:
            self.log.add(self.number, size, self.size - size, DISCARD | SHRINK)
        self.end_at(size)

    def end_at(self, size):
        if size > self.size:
            self.log.add(self.number, size, 0, GROW)
        os.ftruncate(self.back, size)
        self.size = size

    def answer(self, opcode, body):
        """The body of the reply to one request; raises OSError for an error."""
        if opcode in (GETATTR, SETATTR):
            if opcode == SETATTR and struct.unpack_from("<I", body)[0] & SIZE_IS_SET:
                self.resize(struct.unpack_from("<Q", body, 16)[0])
            return struct.pack("<QII", 0, 0, 0) + self.attributes()
        if opcode == OPEN:
            return struct.pack("<QII", 0, DIRECT_IO | PARALLEL_DIRECT_WRITES, 0)
        if opcode == READ:
            offset, size = struct.unpack_from("<QI", body, 8)
            return os.pread(self.back, min(size, max(0, self.size - offset)), offset)
        if opcode == WRITE:
            return self.write(body)
        if opcode == FSYNC:
            self.log.add(self.number, 0, 0, FLUSH)
            return b""
        if opcode == FALLOCATE:
            return self.allocate(*struct.unpack_from("<QQI", body, 8))
        if opcode == LSEEK:
            offset, whence = struct.unpack_from("<QI", body, 8)
            return struct.pack("<Q", os.lseek(self.back, offset, whence))
        if opcode in (RELEASE, FLUSH_FILE, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, f"opcode {opcode}")

    def write(self, body):
        offset, size = struct.unpack_from("<QI", body, 8)
        flags = struct.unpack_from("<I", body, 32)[0]
        data = bytes(body[40:40 + size])
        if offset + size > self.size_max:
            raise OSError(errno.ENOSPC, "the file may not grow further")
        os.pwrite(self.back, data, offset)
        self.size = max(self.size, offset + size)
        self.log.add(self.number, offset, size, FUA if flags & os.O_DSYNC else 0, data)
        return struct.pack("<II", size, 0)

    def allocate(self, offset, length, mode):
        end = offset + length
        if end > self.size_max and not mode & KEEP_SIZE:
            raise OSError(errno.ENOSPC, "the file may not grow further")
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            length = min(end, self.size if mode & KEEP_SIZE else end) - offset
            if length > 0:
                fallocate(self.back, PUNCH_HOLE | KEEP_SIZE, offset, length)
                self.log.add(self.number, offset, length, DISCARD)
        elif mode not in (0, KEEP_SIZE):
            raise OSError(errno.EOPNOTSUPP, "fallocate mode")
        if not mode & KEEP_SIZE and end > self.size:
            self.end_at(end)
        return b""


class Folder:
    """The folder: which file has which name, and the answers to requests for any of them."""

    def __init__(self, back, log, size_max):
        self.back, self.log, self.size_max = back, log, size_max
        self.names, self.files = {}, {}

    def answer(self, opcode, node, body):
        if opcode == STATFS:
            return struct.pack("<5Q4I24x", 1 << 30, 1 << 29, 1 << 29, 1 << 20, 1 << 20, 4096, 255, 4096, 0)
        if opcode == DESTROY:
            return b""
        if node != FOLDER:
            return self.files[node].answer(opcode, body)
        if opcode in (GETATTR, SETATTR):
            return struct.pack("<QII", 0, 0, 0) + attributes(FOLDER, 4096, 8, 0o040777)
        if opcode == LOOKUP:
            return self.entry(self.found(text(body)))
        if opcode == CREATE_FILE:
            return self.entry(self.create(text(body[16:]))) + struct.pack("<QII", 0, DIRECT_IO | PARALLEL_DIRECT_WRITES, 0)
        if opcode == UNLINK_NAME:
            self.found(text(body))
            self.log.add(self.names.pop(text(body)).number, 0, 0, UNLINK, bytes(body).rstrip(b"\0"))
            return b""
        if opcode in (RENAME_NAME, RENAME2):
            flags = struct.unpack_from("<Q", body, 8)[0] if opcode == RENAME2 else 0
            self.rename(*bytes(body[16 if opcode == RENAME2 else 8:]).split(b"\0")[:2], flags & 0xFFFFFFFF)
            return b""
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READDIR:
            offset, = struct.unpack_from("<Q", body, 8)
            return b"".join(directory_entry(place, file.number, name) for place, (name, file)
                            in enumerate(self.names.items(), 1) if place > offset)[:4096]
        if opcode == FSYNCDIR:
            self.log.add(FOLDER, 0, 0, FLUSH)
            return b""
        if opcode in (RELEASEDIR, ACCESS):
            return b""
        raise OSError(errno.ENOSYS, f"opcode {opcode}")

    def found(self, name):
        if name not in self.names:
            raise OSError(errno.ENOENT, name)
        return self.names[name]

    def entry(self, file):
        return struct.pack("<QQQQII", file.number, 0, 0, 0, 0, 0) + file.attributes()

    def create(self, name):
        number = FOLDER + 1 + len(self.files)
        back = os.open(os.path.join(self.back, str(number)), os.O_RDWR | os.O_CREAT, 0o600)
        self.files[number] = self.names[name] = File(number, back, self.log, self.size_max)
        self.log.add(number, 0, 0, CREATE, name.encode())
        return self.files[number]

    def rename(self, old, new, flags):
        file = self.found(old.decode())
        if flags & ~NO_REPLACE:
            raise OSError(errno.EINVAL, "rename flags")
        if flags & NO_REPLACE and new.decode() in self.names:
            raise OSError(errno.EEXIST, new.decode())
        del self.names[old.decode()]
        self.names[new.decode()] = file
        self.log.add(file.number, 0, 0, RENAME, old + b"\0" + new)


def text(body):
    return bytes(body).split(b"\0")[0].decode()


def attributes(number, size, blocks, mode):
    return struct.pack("<QQQQQQ10I", number, size, blocks, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)


def directory_entry(place, number, name):
    name = name.encode()
    return (struct.pack("<QQII", number, place, len(name), 8) + name).ljust((24 + len(name) + 7) // 8 * 8, b"\0")


def fallocate(descriptor, mode, offset, length):
    if LIBC.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def mount(path):
    """Mounts over the folder `path`; returns the descriptor that requests come from."""
    if os.getuid() == 0:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if LIBC.mount(b"recorder", path.encode(), b"fuse.recorder", 6, options.encode()):
            raise OSError(ctypes.get_errno(), f"cannot mount over {path}")
        return device
    ours, theirs = socket.socketpair()
    subprocess.run(["fusermount3", "--", path], check=True, pass_fds=[theirs.fileno()],
                   env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())})
    return socket.recv_fds(ours, 1, 1)[1][0]


def serve(device, folder):
    """Answers requests until the file system is unmounted."""
    while True:
        try:
            request = memoryview(os.read(device, WRITE_MAX + 8192))
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        status, body = 0, b""
        try:
            if opcode == INIT:
                offered = struct.unpack_from("<I", request, 40 + 12)[0]
                flags = offered & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES)
                body = struct.pack("<IIIIHHIIHHII24x", 7, 31, 0, flags, 64, 48, WRITE_MAX, 1,
                                   WRITE_MAX // 4096, 0, 0, 0)
            else:
                body = folder.answer(opcode, node, request[40:])
        except OSError as error:
            status = -(error.errno or errno.EIO)
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(body), status, unique) + body)
        except OSError as error:
            if error.errno != errno.ENOENT:              # the request was interrupted
                raise


def main():
    path, back, log, size_max = sys.argv[1:]
    os.makedirs(back, exist_ok=True)
    serve(mount(path), Folder(back, Log(log), int(size_max)))


if __name__ == "__main__":
    main()

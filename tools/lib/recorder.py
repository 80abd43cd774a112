#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A file that remembers everything that was done to it: what tools/powercut lets the server write to.

  recorder.py FILE BACK LOG SIZE_MAX

Mounts a FUSE file system over FILE (its root is that one file), keeps the contents in BACK and appends every
write, zeroing, discard and flush to LOG, in the order in which they took effect: one request at a time, logged
before it is answered. Ends when FILE is unmounted. It speaks to /dev/fuse itself: the FUSE export of QEMU 7.2
overwrites the buffer of a write with that of the next when several are under way, which libaio does.

The log: 16 bytes (magic, entry count), then for each entry 32 bytes (start, length, flags, 0) and the data;
numbers are 64-bit little-endian. Zeroing and discard have no data. Source: the kernel's fuse(4) protocol 7.31.
"""
import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys

MAGIC = 0x676F6C2D61727473
FLUSH, FUA, DISCARD = 1, 2, 4                     # flags of an entry
HEADER = struct.Struct("<QQQQ")
WRITE_MAX = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH_FILE, INIT, ACCESS, INTERRUPT, DESTROY, FALLOCATE, LSEEK = 20, 25, 26, 34, 36, 38, 43, 46
FORGET, BATCH_FORGET = 2, 42
ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES = 1, 1 << 5, 1 << 15, 1 << 22
DIRECT_IO, PARALLEL_DIRECT_WRITES = 1, 1 << 6
SIZE_IS_SET = 1 << 3
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


class Log:
    """The log's writer."""

    def __init__(self, path):
        self.file = open(path, "w+b", buffering=0)
        self.count, self.end = 0, 16
        self.file.write(struct.pack("<QQ", MAGIC, 0))

    def add(self, start, length, flags, data=b""):
        os.pwrite(self.file.fileno(), HEADER.pack(start, length, flags, len(data)) + data, self.end)
        self.end += HEADER.size + len(data)
        self.count += 1
        os.pwrite(self.file.fileno(), struct.pack("<Q", self.count), 8)


def entry_count(path):
    """How many entries the log at `path` has now."""
    with open(path, "rb", buffering=0) as log:
        return struct.unpack("<QQ", log.read(16))[1]


def read_log(path):
    """The entries of a log: (start, length, flags, data)."""
    with open(path, "rb") as log:
        magic, count = struct.unpack("<QQ", log.read(16))
        if magic != MAGIC:
            raise RuntimeError("this is no recorder log")
        for _ in range(count):
            start, length, flags, size = HEADER.unpack(log.read(HEADER.size))
            yield start, length, flags, log.read(size)


class File:
    """The one file of the file system, and the answers to requests for it."""

    def __init__(self, back, log, size_max):
        self.back, self.log, self.size, self.size_max = back, log, 0, size_max

    def attributes(self):
        blocks = os.fstat(self.back).st_blocks
        attributes = struct.pack("<QQQQQQ10I", 1, self.size, blocks, 0, 0, 0, 0, 0, 0, 0o100600, 1,
                                 os.getuid(), os.getgid(), 0, 4096, 0)
        return struct.pack("<QII", 0, 0, 0) + attributes

    def resize(self, size):
        if size > self.size_max:
            raise OSError(errno.ENOSPC, "the file may not grow further")
        if size < self.size:
            self.log.add(size, self.size - size, DISCARD)
        os.ftruncate(self.back, size)
        self.size = size

    def answer(self, opcode, body):
        """The body of the reply to one request; raises OSError for an error."""
        if opcode in (GETATTR, SETATTR):
            if opcode == SETATTR and struct.unpack_from("<I", body)[0] & SIZE_IS_SET:
                self.resize(struct.unpack_from("<Q", body, 16)[0])
            return self.attributes()
        if opcode == OPEN:
            return struct.pack("<QII", 0, DIRECT_IO | PARALLEL_DIRECT_WRITES, 0)
        if opcode == READ:
            offset, size = struct.unpack_from("<QI", body, 8)
            return os.pread(self.back, min(size, max(0, self.size - offset)), offset)
        if opcode == WRITE:
            return self.write(body)
        if opcode == FSYNC:
            self.log.add(0, 0, FLUSH)
            return b""
        if opcode == FALLOCATE:
            return self.allocate(*struct.unpack_from("<QQI", body, 8))
        if opcode == LSEEK:
            offset, whence = struct.unpack_from("<QI", body, 8)
            return struct.pack("<Q", os.lseek(self.back, offset, whence))
        if opcode == STATFS:
            return struct.pack("<5Q4I24x", 1 << 30, 1 << 29, 1 << 29, 1, 0, 4096, 255, 4096, 0)
        if opcode in (RELEASE, FLUSH_FILE, ACCESS, DESTROY):
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
        self.log.add(offset, size, FUA if flags & os.O_DSYNC else 0, data)
        return struct.pack("<II", size, 0)

    def allocate(self, offset, length, mode):
        end = offset + length
        if end > self.size_max and not mode & KEEP_SIZE:
            raise OSError(errno.ENOSPC, "the file may not grow further")
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            length = min(end, self.size if mode & KEEP_SIZE else end) - offset
            if length > 0:
                fallocate(self.back, PUNCH_HOLE | KEEP_SIZE, offset, length)
                self.log.add(offset, length, DISCARD)
        elif mode not in (0, KEEP_SIZE):
            raise OSError(errno.EOPNOTSUPP, "fallocate mode")
        if not mode & KEEP_SIZE and end > self.size:
            os.ftruncate(self.back, end)
            self.size = end
        return b""


def fallocate(descriptor, mode, offset, length):
    if LIBC.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def mount(path):
    """Mounts over the file `path`; returns the descriptor that requests come from."""
    if os.getuid() == 0:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=100000,user_id=0,group_id=0,allow_other"
        if LIBC.mount(b"recorder", path.encode(), b"fuse.recorder", 6, options.encode()):
            raise OSError(ctypes.get_errno(), f"cannot mount over {path}")
        return device
    ours, theirs = socket.socketpair()
    subprocess.run(["fusermount3", "--", path], check=True, pass_fds=[theirs.fileno()],
                   env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())})
    return socket.recv_fds(ours, 1, 1)[1][0]


def serve(device, file):
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
        _, opcode, unique = struct.unpack_from("<IIQ", request)
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
                body = file.answer(opcode, request[40:])
        except OSError as error:
            status = -(error.errno or errno.EIO)
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(body), status, unique) + body)
        except OSError as error:
            if error.errno != errno.ENOENT:              # the request was interrupted
                raise


def main():
    path, back, log, size_max = sys.argv[1:]
    descriptor = os.open(back, os.O_RDWR | os.O_CREAT, 0o600)
    serve(mount(path), File(descriptor, Log(log), int(size_max)))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Programs in which one system call fails: failingcall.c preloaded, and what it counted."""
import errno
import os
import struct
import subprocess

CALLS = ["pread", "preadv", "pwrite", "pwritev2", "fdatasync", "fallocate", "ftruncate", "aio-read", "aio-write", "aio-sync"]
WORDS = 16
ERRORS = {"short": 0, "lost": -1}              # what is no errno: a part is transferred; a write that never happens


def build(folder):
    """Returns the path of the library."""
    library = os.path.join(folder, "failingcall.so")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "failingcall.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def number(error):
    """What the library calls an error: 'EIO', 'short', 'lost'."""
    return ERRORS[error] if error in ERRORS else getattr(errno, error)


class Injection:
    """One call of one program that fails, or none with the number 0."""

    def __init__(self, library, folder, call="", error="EIO", which=0):
        self.path = os.path.join(folder, "calls")
        with open(self.path, "wb") as file:
            file.truncate(8 * WORDS)
        os.chmod(self.path, 0o666)
        self.environment = {**os.environ, "LD_PRELOAD": library, "FAILING_COUNTS": self.path, "FAILING_CALL": call,
                            "FAILING_ERRNO": str(number(error)), "FAILING_NUMBER": str(which)}

    def words(self):
        with open(self.path, "rb") as file:
            return struct.unpack(f"{WORDS}q", file.read())

    def counts(self):
        """How often each call was made."""
        return dict(zip(CALLS, self.words()))

    def has_happened(self):
        return bool(self.words()[len(CALLS)])

    def was_durable(self):
        """Whether the write that failed was one with RWF_DSYNC."""
        return self.words()[len(CALLS)] == 3

# SPDX-License-Identifier: Apache-2.0
"""Power cuts in the middle of `strata key`: what tools/powercut --keys runs.

Of each cut (verbcuts.py) it asks: is the image at worst leaking clusters, does the key that stays open the disk as it
was, and does the key that comes or goes either open the same disk or nothing; when the verb has ended, the new key
opens it and the removed one does not.
"""
import os

import verbcuts
from lukstries import again_when_too_fast
from verbcuts import run

KEYS = ("one", "two", "three")
OBJECTS = [f"secret,id={key},data={key}" for key in KEYS]
FORMATS = ["cluster_size=65536", "cluster_size=4096", "cluster_size=16384,extended_l2=on"]


def secret(key):
    return f",encrypt.key-secret={key}"


class KeyCuts(verbcuts.Cuts):
    """One encrypted image and the verbs on it."""

    KIND, CELLS, OBJECTS = "keys", FORMATS, OBJECTS

    def go(self):
        image, words = self.path("image"), ["--object", OBJECTS[0]]
        for key in KEYS:
            with open(self.path(key), "w", encoding="utf-8") as file:
                file.write(key)
        options = f"{self.name},encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10"
        again_when_too_fast(lambda: run("qemu-img", "create", "-q", *words, "-f", "qcow2", "-o", options, image, "2M"))
        self.write(image, *words, secret=secret("one"))
        self.whole = self.disk(image, secret=secret("one"))
        self.step("one", "two", "add", "--key-file", "one", "--new-key-file", "two", "--iter-time", "10")
        self.step("two", "three", "add", "--key-file", "two", "--new-key-file", "three", "--iter-time", "10")
        self.step("two", "one", "remove", "--key-file", "two", "--slot", "0")
        self.step("two", "three", "remove", "--key-file", "two", "--slot", "2")

    def opens(self, path, key):
        """Whether the key opens the disk as it was; raises RuntimeError when it opens another one."""
        try:
            found = self.disk(path, secret=secret(key))
        except RuntimeError as error:
            if "Invalid password" in str(error):
                return False
            raise
        if found != self.whole:
            raise RuntimeError(f"key {key} opens another disk")
        return True

    def step(self, stays, moves, verb, *words):
        """Cuts a verb that adds or removes the key `moves`, and goes on with its result."""
        def judge(has_ended):
            state = os.path.join(self.folder, "image")
            trouble = self.check(state, secret(stays))
            if trouble:
                return trouble
            try:
                if not self.opens(state, stays):
                    return f"key {stays} opens it no more"
                is_open = self.opens(state, moves)
            except RuntimeError as error:
                return str(error)
            if has_ended and is_open != (verb == "add"):
                return f"key {moves} was {'added, and does not open it' if verb == 'add' else 'removed, and opens it'}"
            return None

        self.cut(["image", *KEYS], ["key", verb, *words, "image"], judge)

#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Follows the quick start as a person would: boots the overlay that tools/run serves, types, powers off.

  quick-start.py --bin DIR --base BASE.qcow2 [--qemu PROGRAM]

Boots twice: the first guest writes a file, removes another, trims and powers off; the second one has to
find the file. Afterwards the server ends by SIGTERM with status 0, `qemu-img check` finds the overlay
clean, and the base has the sha256 it had. Exit status 0 when all of that holds.
"""
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time


class Console:
    """The serial console of one guest: types lines and waits for what they print."""

    def __init__(self, qemu, socket, style):
        if style == "drive":
            disk = ["-drive", f"file=nbd:unix:{socket},format=raw,if=virtio,discard=unmap"]
        else:
            disk = ["-blockdev", f"driver=nbd,node-name=n,server.type=unix,server.path={socket},"
                                 "discard=unmap", "-device", "virtio-blk-pci,drive=n"]
        self.process = subprocess.Popen(
            [qemu, "-accel", "tcg", "-cpu", "Nehalem,+rdrand", "-m", "256", "-nodefaults",
             "-display", "none", "-no-reboot", "-serial", "stdio", *disk],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.text, self.at = "", 0
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        while data := self.process.stdout.read1(4096):
            self.text += data.decode(errors="replace")

    def wait(self, text, timeout=120):
        end = time.monotonic() + timeout
        while text not in self.text[self.at:]:
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"the guest did not print {text!r}:\n{self.text[-800:]}")
            time.sleep(0.05)
        self.at = self.text.index(text, self.at) + len(text)

    def run(self, line):
        """Types a command and waits until it has succeeded."""
        self.process.stdin.write(f"{line} && echo o''k || echo f''ailed\n".encode())
        self.process.stdin.flush()
        self.wait("\nok\r")

    def power_off(self):
        self.process.stdin.write(b"poweroff\n")
        self.process.stdin.flush()
        self.process.wait(60)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of strata and stratad")
    parser.add_argument("--base", required=True)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    args = parser.parse_args()
    before = sha256(args.base)
    with tempfile.TemporaryDirectory() as work:
        overlay, socket = os.path.join(work, "vm1.qcow2"), os.path.join(work, "vm1.sock")
        strata = os.path.join(args.bin, "strata")
        started = time.monotonic()
        subprocess.run([strata, "create", "-f", "qcow2", "-b", os.path.abspath(args.base), "-F", "qcow2",
                        overlay], check=True, timeout=30)
        print(f"created in {(time.monotonic() - started) * 1000:.0f} ms")
        server = subprocess.Popen([strata, "serve", overlay, "--allow-backing", args.base, "--socket", socket],
                                  text=True, stdout=subprocess.PIPE)
        guest = None
        try:
            line = server.stdout.readline().strip()
            print(line)
            if f"-drive file=nbd:unix:{socket},format=raw,if=virtio" not in line:
                raise RuntimeError("strata serve did not print the -drive option")
            for style, work_lines in (
                    ("drive", ["echo hello >/root/kept", "head -c 30000000 /dev/urandom >/root/gone",
                               "sync", "rm /root/gone", "fstrim -v /"]),
                    ("blockdev", ["grep hello /root/kept", "head -c 3000000 /bin/busybox >/root/more",
                                  "fstrim -v /", "! dmesg | grep -E 'EXT4-fs error|I/O error'"])):
                guest = Console(args.qemu, socket, style)
                guest.wait("guest:")
                print(f"{style}: a shell after {time.monotonic() - started:.1f} s")
                for work_line in work_lines:
                    guest.run(work_line)
                guest.power_off()
                started = time.monotonic()
            server.terminate()
            if server.wait(30) != 0:
                raise RuntimeError(f"the server exits with {server.returncode} after SIGTERM")
        finally:
            if guest is not None:
                guest.close()
            if server.poll() is None:
                server.kill()
                server.wait()
        subprocess.run(["qemu-img", "check", "-f", "qcow2", overlay], check=True, timeout=60)
        if os.path.exists(socket):
            # without privileges it cannot take the name out of a folder of root's; the next one does
            print("note: the socket is still there")
        print(f"overlay: {os.stat(overlay).st_blocks // 2048} MiB on disk")
    if sha256(args.base) != before:
        raise RuntimeError("the base has changed")
    print("the overlay is clean and the base untouched")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"quick-start: {error}", file=sys.stderr)
        sys.exit(1)

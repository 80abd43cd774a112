# SPDX-License-Identifier: Apache-2.0
"""Has QEMU make LUKS headers and keys on a machine however busy.

QEMU measures how fast the machine derives keys, with a clock of its thread that ticks every few milliseconds. When the
thread got no tick of it, QEMU gives up: "Unable to get accurate CPU usage". Asked again, it does it sooner or later.
"""
CLOCK = "accurate CPU usage"
TRIES = 400


def again_when_too_fast(attempt):
    """What `attempt()` returns. It is called again as long as it raises an error that speaks of QEMU's clock."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except RuntimeError as error:
            if CLOCK not in str(error):
                raise
    return attempt()

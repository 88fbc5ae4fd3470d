"""That a piece of work leaves nothing open, seen from the process that did it.

The process is pytest's: its collector may close what earlier tests left to it, and their threads may end, at any
moment. So the collector rests meanwhile, and what counts is what was opened, never how many there are. A thread that
looks at something opens it for a moment, so what was opened is looked at more than once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator

LOOKS = 5
Opened = Callable[[], set[tuple[int, str]]]


def descriptors() -> set[tuple[int, str]]:
    """The descriptors of this process and what each of them is; the one that lists them is not one of them."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((int(number), os.readlink(f"/proc/self/fd/{number}")))
    return found


def lasting(before: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """What is open now, a moment later, and was not *before*."""
    found = descriptors() - before
    for _ in range(LOOKS):
        if found:
            time.sleep(0.002)
            found &= descriptors()
    return found


@contextlib.contextmanager
def opened_within() -> Iterator[Opened]:
    """Give a function that tells which descriptors are open that were not when this began."""
    was_enabled = gc.isenabled()
    gc.disable()
    before = descriptors()
    try:
        yield lambda: lasting(before)
    finally:
        if was_enabled:
            gc.enable()

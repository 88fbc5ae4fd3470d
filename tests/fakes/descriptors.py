"""That a piece of work leaves nothing open, seen from the process that did it.

The process is pytest's: its collector may close what earlier tests left to it, and their threads may end, at any
moment. So the collector rests meanwhile, and what counts is what was opened, never how many there are.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

Opened = Callable[[], set[tuple[int, str]]]


def descriptors() -> set[tuple[int, str]]:
    """The descriptors of this process and what each of them is; the one that lists them is not one of them."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((int(number), os.readlink(f"/proc/self/fd/{number}")))
    return found


@contextlib.contextmanager
def opened_within() -> Iterator[Opened]:
    """Give a function that tells which descriptors are open that were not when this began."""
    was_enabled = gc.isenabled()
    gc.disable()
    before = descriptors()
    try:
        yield lambda: descriptors() - before
    finally:
        if was_enabled:
            gc.enable()

"""What the process takes from itself and allows itself before it reads anything from outside.

The memory holds credentials: it must not end up in a core file, nor be read by another process of the same user.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
_MOST_FILES = 1 << 20


def harden() -> None:
    """Switch core dumps off, keep other processes out of the memory, and allow as many open files as may be."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning(f"core dumps stay possible: {os.strerror(ctypes.get_errno())}")
    _raise_open_files()


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""Giving up capabilities for good: what a process does not hold, no bug in it can use.

Rule: capabilities belong to a thread, and a new thread has those of the one that made it. So they are given up before
there is a second one.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from rootfs import syscalls

# linux/include/uapi/linux/capability.h
CHOWN: Final = 1 << 0
DAC_OVERRIDE: Final = 1 << 1
DAC_READ_SEARCH: Final = 1 << 2
FOWNER: Final = 1 << 3
FSETID: Final = 1 << 4
SETPCAP: Final = 1 << 8
SYS_ADMIN: Final = 1 << 21
MKNOD: Final = 1 << 27
SETFCAP: Final = 1 << 31

_LAST: Final = 63


def held() -> int:
    """Return the capabilities that this thread has or may take, as a bit set."""
    return syscalls.capget()[1]


def keep_only(kept: int) -> dict[str, str]:
    """Give up every capability but *kept*, now and for every program that is started from here.

    Returns:
        What could not be had, with the reason: "capabilities", "bounding-set", "no-new-privs", and "threads" where
        other threads of this process have theirs still.
    """
    missing = {}
    if (others := len(os.listdir("/proc/self/task")) - 1) > 0:
        missing["threads"] = f"{others} more threads run already"
    for name, step in (("bounding-set", drop_bounding_set), ("capabilities", cut), ("no-new-privs", forbid_more)):
        try:
            step(kept)
        except OSError as error:
            missing[name] = str(error)
    return missing


def drop_bounding_set(kept: int = 0) -> None:
    """Take all but *kept* out of the bounding set: no program that is started can have more; needs SETPCAP.

    Raises:
        OSError: EPERM without SETPCAP.
    """
    for number in range(_LAST + 1):
        try:
            held = syscalls.prctl(syscalls.PR_CAPBSET_READ, number)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # Beyond the last capability that this kernel has.
            raise
        if held and not kept >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def cut(kept: int) -> None:
    """Hold none but *kept* of the capabilities that are held, and hand none on.

    Raises:
        OSError: the kernel's own answer.
    """
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    left = syscalls.capget()[1] & kept
    syscalls.capset(left, left, 0)


def forbid_more(_kept: int = 0) -> None:
    """Have no program that is started gain a privilege, as setuid programs do.

    Raises:
        OSError: the kernel's own answer.
    """
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

"""What the work on layers may take of the node's processors: which of them, how urgently, in which cgroup.

It is put upon the process that all others of this package come from, as soon as that runs: whatever is forked later,
the children that unpack included, is born with it.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs.errors import HelperFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

LAST_CPU: Final = 8191
"""The kernel's own bound of processors, less one."""

_RANGE: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def cpu_list(text: str) -> frozenset[int]:
    """Return the processors of a list as the kernel writes them (cpuset(7), "List format"): 0-3,8.

    Raises:
        ValueError: it is none, or a range goes backwards; the message says which.
    """
    found: set[int] = set()
    for part in text.split(",") if text else ():
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match is not None else (1, 0)
        if not first <= last <= LAST_CPU:
            raise ValueError(f"{part[:20]!r} is no processor from 0 to {LAST_CPU}, and no range of them")
        found.update(range(first, last + 1))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What processes are put upon.

    Attributes:
        cpus: the processors that they may run on; empty for any.
        nice: their niceness (sched(7)); 0 leaves it as it is.
        cgroup: the directory of a cgroup (version 1 or 2) that they belong to; "" leaves them where they are.
    """

    cpus: frozenset[int] = frozenset()
    nice: int = 0
    cgroup: str = ""

    def put_upon(self, pid: int) -> None:
        """Put it upon the process *pid*, which has one thread and no children yet.

        Raises:
            HelperFailed: the kernel does not do it.
        """
        with _saying(f"put on the processors {','.join(map(str, sorted(self.cpus)))}"):
            if self.cpus:
                os.sched_setaffinity(pid, self.cpus)
        with _saying(f"given the niceness {self.nice}"):
            if self.nice:
                os.setpriority(os.PRIO_PROCESS, pid, self.nice)
        with _saying(f"put into the cgroup {self.cgroup}"):
            if self.cgroup:
                _join(self.cgroup, pid)


UNBOUND: Final = Scheduling()


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HelperFailed(f"the unpacker cannot be {what}: {error.strerror}") from None


def _join(cgroup: str, pid: int) -> None:
    procs = os.open(os.path.join(cgroup, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)  # never made: it is the kernel's
    try:
        os.write(procs, b"%d" % pid)
    finally:
        os.close(procs)

"""What an unpacking child gives up before it reads a hostile byte.

Rule: the parts are taken in one order, the later ones forbidding what the earlier ones needed. A part that this kernel,
container or user cannot have is found out once, by a probe that tries them all, and left off by name; a part that the
probe had and a child cannot get is fatal to that child.

    parent-death    the child dies with the helper
    root            its own mount namespace in which the layer's directory, nosuid, nodev and noexec, is the root
    rlimits         size of a file, descriptors, processor time, address space, no core
    undumpable      nobody but root looks into its memory
    capabilities    owners, modes and device nodes, nothing else
    bounding-set    no program and no bug ever gives one back
    no-new-privs    nor does a setuid program
    seccomp         only the system calls that unpacking makes
    namespaces      no network, no IPC, its own host name; left once, by the helper, for all its children
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from rootfs import capabilities, seccomp, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ROOT: Final = 6
"""Descriptor of the layer's directory in a child, before and after it became the root."""

NAMESPACES: Final = "namespaces"

# DAC_OVERRIDE because an entry that is a hard link sets attributes of a file that has its owner and mode already.
KEPT: Final = (
    capabilities.CHOWN
    | capabilities.DAC_OVERRIDE
    | capabilities.FOWNER
    | capabilities.FSETID
    | capabilities.MKNOD
    | capabilities.SETFCAP
)
"""The capabilities of an unpacking child, as a bit set."""

# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and the locks of all four bits (linux/securebits.h).
_SECURE_BITS: Final = 0xEF
_MOUNT_FLAGS: Final = (
    syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC | syscalls.MOUNT_ATTR_NOATIME
)
_OOM_SCORE: Final = b"500"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the kernel holds an unpacking child to.

    Attributes:
        file_bytes: the largest file.
        memory_bytes: address space.
        cpu_seconds: processor time.
        descriptors: open at a time.
        parent: process id of the helper, which must still be there.
        read_only: the layer's directory cannot be written to.
    """

    file_bytes: int
    memory_bytes: int
    cpu_seconds: int
    descriptors: int
    parent: int
    read_only: bool = False


def leave_namespaces() -> None:
    """Leave the host's network, IPC and UTS namespaces.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)


def confine(parts: Collection[str], bounds: Bounds) -> dict[str, str]:
    """Give up everything that *parts* name, in order; return the parts that could not be had, with the reason.

    Descriptor `ROOT` is the layer's directory. It is the caller who decides whether a missing part is fatal.
    """
    missing = {}
    for name, step in _STEPS:
        if name in parts:
            try:
                step(bounds)
            except (OSError, ValueError) as error:
                missing[name] = str(error)
    return missing


def offer_to_oom_killer() -> None:
    """Make this process a better choice for the kernel's out-of-memory killer than its parent."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, _OOM_SCORE)
        finally:
            os.close(descriptor)


@cache
def _filter() -> bytes:
    return seccomp.program(syscalls.ARCHITECTURE)


def warm_up() -> None:
    """Compute before a fork what every child would compute again."""
    with contextlib.suppress(OSError):
        _filter()


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, whose id is *parent*, ends.

    Raises:
        OSError: the parent is gone already.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the helper is gone")


def _die_with_parent(bounds: Bounds) -> None:
    die_with_parent(bounds.parent)


def _own_root(bounds: Bounds) -> None:
    """Make the directory at `ROOT` the root of a mount namespace in which nothing else is mounted."""
    os.fchdir(ROOT)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, b".", syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    flags = _MOUNT_FLAGS | (syscalls.MOUNT_ATTR_RDONLY if bounds.read_only else 0)
    syscalls.mount_setattr(tree, flags, syscalls.MOUNT_ATTR_ATIME_MASK)
    syscalls.move_mount(tree, syscalls.AT_FDCWD, b".")
    os.fchdir(tree)
    os.close(tree)
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")
    inside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(inside, ROOT, inheritable=False)
    os.close(inside)


def _set_limits(bounds: Bounds) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # A write beyond the limit fails with EFBIG instead.
    _set_limit(resource.RLIMIT_FSIZE, bounds.file_bytes)
    _set_limit(resource.RLIMIT_NOFILE, bounds.descriptors)
    limit_processor_time(bounds.cpu_seconds)
    _set_limit(resource.RLIMIT_AS, bounds.memory_bytes)
    _set_limit(resource.RLIMIT_CORE, 0)


def stand_back() -> None:
    """Leave processor and disk to everybody else."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        syscalls.ioprio_set_idle()


def limit_processor_time(seconds: int) -> None:
    """Have the kernel end this process once it took *seconds* of processor time."""
    _set_limit(resource.RLIMIT_CPU, seconds, grace=1)  # SIGXCPU tells what SIGKILL would not.


def _set_limit(which: int, wanted: int, *, grace: int = 0) -> None:
    hard = resource.getrlimit(which)[1]
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (soft, soft + grace if hard == resource.RLIM_INFINITY else min(soft + grace, hard)))


def _hide_memory(_: Bounds) -> None:
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _drop_bounding_set(_: Bounds) -> None:
    """Empty the bounding set and fix that being root gives nothing; needs CAP_SETPCAP, so it comes first."""
    capabilities.drop_bounding_set()
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, _SECURE_BITS)


def _cut_capabilities(_: Bounds) -> None:
    capabilities.cut(KEPT)


def _forbid_privileges(_: Bounds) -> None:
    capabilities.forbid_more()


def _filter_calls(_: Bounds) -> None:
    syscalls.seccomp(_filter())


_STEPS: Final[tuple[tuple[str, Callable[[Bounds], None]], ...]] = (
    ("parent-death", _die_with_parent),
    ("root", _own_root),
    ("rlimits", _set_limits),
    ("undumpable", _hide_memory),
    ("bounding-set", _drop_bounding_set),
    ("capabilities", _cut_capabilities),
    ("no-new-privs", _forbid_privileges),
    ("seccomp", _filter_calls),
)
PARTS: Final = tuple(name for name, _ in _STEPS)
"""Every part that a child takes, in order; `NAMESPACES` is the helper's."""

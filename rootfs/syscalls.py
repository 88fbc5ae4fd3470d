"""The system calls that Python has no function for.

Rule: this is the one place that knows a system call by number. Numbers stand per architecture and are refused where
the architecture is unknown; a call that fails raises `OSError` with the kernel's errno, as the functions of `os` do.
Nothing here decides anything: what is called when, and what a failure means, is the caller's.

Numbers: linux/arch/x86/entry/syscalls/syscall_64.tbl and linux/include/uapi/asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import sys
from typing import Any, Final

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x00000004

MOUNT_ATTR_RDONLY: Final = 0x00000001
MOUNT_ATTR_NOSUID: Final = 0x00000002
MOUNT_ATTR_NODEV: Final = 0x00000004
MOUNT_ATTR_NOEXEC: Final = 0x00000008
MOUNT_ATTR_NOATIME: Final = 0x00000010
MOUNT_ATTR_ATIME_MASK: Final = 0x00000070

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

RENAME_NOREPLACE: Final = 1

SECCOMP_SET_MODE_FILTER: Final = 1

IOPRIO_WHO_PROCESS: Final = 1
IOPRIO_CLASS_BE: Final = 2
IOPRIO_CLASS_IDLE: Final = 3
RENAME_EXCHANGE: Final = 2

# The kernel may ask to try a resolution again when a rename raced it; a bound, so that a renamer cannot hold us here.
_RESOLVE_TRIES: Final = 128

_NUMBERS: Final[dict[str, dict[str, int]]] = {
    "x86_64": {
        "capget": 125,
        "capset": 126,
        "pivot_root": 155,
        "prctl": 157,
        "mount": 165,
        "umount2": 166,
        "ioprio_set": 251,
        "unshare": 272,
        "syncfs": 306,
        "renameat2": 316,
        "seccomp": 317,
        "open_tree": 428,
        "move_mount": 429,
        "close_range": 436,
        "openat2": 437,
        "mount_setattr": 442,
        "fchmodat2": 452,
    },
    "aarch64": {
        "ioprio_set": 30,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "capget": 90,
        "capset": 91,
        "unshare": 97,
        "prctl": 167,
        "syncfs": 267,
        "renameat2": 276,
        "seccomp": 277,
        "open_tree": 428,
        "move_mount": 429,
        "close_range": 436,
        "openat2": 437,
        "mount_setattr": 442,
        "fchmodat2": 452,
    },
}

# A 32 bit process has other numbers, whatever the machine is.
ARCHITECTURE: Final = platform.machine() if sys.maxsize > 1 << 32 else f"{platform.machine()} in 32 bits"
_numbers: Final = _NUMBERS.get(ARCHITECTURE, {})
_libc: Final = ctypes.CDLL(None, use_errno=True)
_syscall: Final = _libc.syscall
_syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_BYTES: Final = ctypes.sizeof(_OpenHow)


@functools.lru_cache(maxsize=64)
def _how(flags: int, mode: int, resolve: int) -> Any:
    """Return the address of an `open_how`; the kernel only reads it, so that one serves every call."""
    return ctypes.byref(_OpenHow(flags, mode, resolve))


class _MountAttributes(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    """`struct __user_cap_header_struct`, version 3: two words of data."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CAPABILITY_VERSION: Final = 0x20080522
_CapabilityData = ctypes.c_uint32 * 6


def _number(name: str) -> int:
    found = _numbers.get(name)
    if found is None:
        raise OSError(errno.ENOSYS, f"the number of {name} on {ARCHITECTURE} is not known")
    return found


def _call(name: str, *arguments: object) -> int:
    """Make the system call *name*; integers are passed as longs, bytes and structures by address.

    Raises:
        OSError: what the kernel said, or ENOSYS where the number is not known.
    """
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_syscall(ctypes.c_long(_number(name)), *passed))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def openat2(directory: int, path: bytes, flags: int, *, resolve: int, mode: int = 0) -> int:
    """Open *path* relative to the descriptor *directory* under the `RESOLVE_*` rules; the descriptor is close-on-exec.

    Raises:
        OSError: EXDEV or ELOOP where a rule forbids the path, ENOSYS before Linux 5.6.
        ValueError: a NUL in the path.
    """
    if b"\0" in path:
        raise ValueError("embedded null byte")
    how = _how(flags | os.O_CLOEXEC, mode, resolve)
    number = _number("openat2")
    for _ in range(_RESOLVE_TRIES):
        # Once per entry of a layer: straight to the call, which takes Python's small integers as they are.
        descriptor: int = _syscall(number, directory, path, how, _HOW_BYTES)
        if descriptor >= 0:
            return descriptor
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def fchmodat2(directory: int, path: bytes, mode: int, flags: int = AT_SYMLINK_NOFOLLOW) -> None:
    """Set the mode of *path*, by default without following a link (Linux 6.6)."""
    _call("fchmodat2", directory, path, mode, flags)


def renameat2(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int) -> None:
    """Rename under *flags*, such as `RENAME_NOREPLACE`."""
    _call("renameat2", old_directory, old, new_directory, new, flags)


def syncfs(descriptor: int) -> None:
    """Write back the filesystem that *descriptor* lies on.

    Since Linux 5.8 it fails when a write-back failed after *descriptor* was opened; the failure is told once per open
    file description, so a description must not be shared by two who both want to know.
    """
    _call("syncfs", descriptor)


def close_range(first: int, last: int) -> None:
    """Close all descriptors from *first* to *last*, both included (Linux 5.9)."""
    _call("close_range", first, last, 0)


def unshare(flags: int) -> None:
    """Leave the namespaces named by *flags* for new ones."""
    _call("unshare", flags)


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """Attach a mount by the old interface."""
    _call("mount", source, target, kind, flags, data)


def umount2(target: bytes, flags: int) -> None:
    """Take the mount at *target* away."""
    _call("umount2", target, flags)


def pivot_root(new: bytes, old: bytes) -> None:
    """Make the mount *new* the root of this mount namespace and put the old root at *old*."""
    _call("pivot_root", new, old)


def open_tree(directory: int, path: bytes, flags: int) -> int:
    """Return a descriptor of the mount at *path*, or of a clone of it with `OPEN_TREE_CLONE` (Linux 5.2)."""
    return _call("open_tree", directory, path, flags)


def move_mount(tree: int, directory: int, path: bytes) -> None:
    """Attach the mount *tree*, made by `open_tree`, at *path* (Linux 5.2)."""
    _call("move_mount", tree, b"", directory, path, MOVE_MOUNT_F_EMPTY_PATH)


def mount_setattr(tree: int, set_flags: int, clear_flags: int = 0) -> None:
    """Set and clear `MOUNT_ATTR_*` on the mount *tree* (Linux 5.12)."""
    attributes = _MountAttributes(set_flags, clear_flags, 0, 0)
    _call("mount_setattr", tree, b"", AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))


def prctl(option: int, first: int = 0, second: int = 0, third: int = 0, fourth: int = 0) -> int:
    """Set or ask an attribute of this process; every argument is a number."""
    return _call("prctl", option, first, second, third, fourth)


def capget() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities of this thread as bit sets."""
    data = _CapabilityData()
    _call("capget", ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION, 0)), ctypes.byref(data))
    low, high = data[:3], data[3:]
    effective, permitted, inheritable = (low[i] | high[i] << 32 for i in range(3))
    return effective, permitted, inheritable


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of this thread from bit sets."""
    sets = (effective, permitted, inheritable)
    words = [word & 0xFFFFFFFF for word in sets] + [word >> 32 for word in sets]
    _call("capset", ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION, 0)), ctypes.byref(_CapabilityData(*words)))


class _Program(ctypes.Structure):
    """`struct sock_fprog`: a classic BPF program."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp(program: bytes) -> None:
    """Install *program*, classic BPF instructions of eight bytes each, as a filter on this thread."""
    block = _Program(len(program) // 8, program)
    _call("seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(block))


def ioprio_set(priority: int) -> None:
    """Set the best-effort I/O priority of this process: 0 is first, 7 is last."""
    _call("ioprio_set", IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_BE << 13 | priority)


def ioprio_set_idle() -> None:
    """Have this process served by the disk only when nobody else wants to be."""
    _call("ioprio_set", IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE << 13)

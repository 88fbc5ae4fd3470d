"""Opening directories inside a tree that a layer made, and never outside it.

Rule: the kernel resolves (openat2, Linux 5.6); where it cannot, one component at a time is opened without following
links, and links are read and applied here. The trees that are opened through this file do not change meanwhile: they
are committed layers, or layers whose unpacker has ended.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from rootfs import syscalls

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_HOPS: Final = 40
_WITHOUT_LINKS: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_IN_ROOT: Final = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
# What a kernel or a container's filter answers where openat2 is not to be had.
_NO_OPENAT2: Final = (errno.ENOSYS, errno.EPERM)


def open_beneath(root: int, path: bytes) -> int:
    """Open the directory *path* below the descriptor *root*, b"" for root itself; no link is followed.

    Raises:
        OSError: ENOTDIR or ELOOP where a component is not a directory, EXDEV for a path that would leave.
    """
    if not path:
        return os.open(".", DIRECTORY, dir_fd=root)
    if b".." in path.split(b"/"):  # The kernel would allow one that stays inside.
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    try:
        return syscalls.openat2(root, path, DIRECTORY, resolve=_WITHOUT_LINKS)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _step_by_step(root, path)


def open_child(parent: int, name: bytes) -> int:
    """Open the directory *name* of *parent*, unless it is a link or something is mounted on it.

    Raises:
        OSError: EXDEV for a mount point.
    """
    try:
        return syscalls.openat2(parent, name, DIRECTORY, resolve=_WITHOUT_LINKS | syscalls.RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    child = os.open(name, DIRECTORY, dir_fd=parent)
    if os.fstat(child).st_dev != os.fstat(parent).st_dev:
        os.close(child)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return child


def open_in_root(root: int, path: bytes) -> int:
    """Open the directory that *path* leads to when *root* is taken as the root of everything, links followed.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP as a chroot would answer.
    """
    flags = DIRECTORY & ~os.O_NOFOLLOW
    try:
        return syscalls.openat2(root, path or b".", flags, resolve=_IN_ROOT)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    return _Walk(root).to(path)


def _step_by_step(root: int, path: bytes) -> int:
    here = os.open(".", DIRECTORY, dir_fd=root)
    for name in path.split(b"/"):
        try:
            if name in (b"", b".", b".."):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            below = os.open(name, DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


class _Walk:
    """Resolves a path inside a root by reading links itself; a `..` at the root stays there."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._hops = 0

    def to(self, path: bytes) -> int:
        """Return a descriptor of the directory that *path* leads to."""
        left = path.split(b"/")[::-1]
        while left:
            name = left.pop()
            if name == b"..":
                self._names = self._names[:-1]
            elif name not in (b"", b"."):
                left.extend(self._step(name))
        return self._here()

    def _here(self) -> int:
        return _step_by_step(self._root, b"/".join(self._names)) if self._names else open_beneath(self._root, b"")

    def _step(self, name: bytes) -> list[bytes]:
        """Enter *name*, or return what its link says, last component first."""
        here = self._here()
        try:
            target = os.readlink(name, dir_fd=here)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            self._names.append(name)
            return []
        finally:
            os.close(here)
        self._hops += 1
        if self._hops > _HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith(b"/"):
            self._names = []
        return target.split(b"/")[::-1]

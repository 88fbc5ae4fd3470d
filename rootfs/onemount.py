"""Two directories of one filesystem that are seen through two mounts, opened again through one: link(2) wants that.

containers-storage mounts the directory of its layers on itself, and a unit of systemd makes a mount of each path that
it may write, so this is the rule where a runtime's files are to be linked. A clone of the mount above both, without
what is mounted below it, shows the same directories; it is attached nowhere and goes with its descriptor. Needs
CAP_SYS_ADMIN and Linux 5.2.

Rule: what is opened so is used only if it is the very directory (device and inode) that was given.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from rootfs import syscalls
from rootfs.beneath import open_beneath

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE: Final = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
_INFO_BYTES: Final = 4096


@contextlib.contextmanager
def through_one_mount(own: int, other: int) -> Iterator[tuple[int, int]]:
    """Give descriptors of both directories that are of one mount; those that were given where that cannot be, or is so.

    Args:
        own: a directory that is to be written.
        other: another one, O_PATH or more.
    """
    with contextlib.ExitStack() as opened:
        try:
            pair = _again(own, other, opened) if _is_needed(own, other) else None
        except OSError:  # old kernels, no such right, a path that leads elsewhere: as without it
            pair = None
        yield pair or (own, other)


def _is_needed(own: int, other: int) -> bool:
    return os.fstat(own).st_dev == os.fstat(other).st_dev and _mount_of(own) != _mount_of(other)


def _mount_of(descriptor: int) -> bytes:
    """Return the number of the mount that a descriptor was opened through (proc_pid_fdinfo(5))."""
    info = os.open(f"/proc/self/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(info, _INFO_BYTES).splitlines()
    finally:
        os.close(info)
    return next((line for line in lines if line.startswith(b"mnt_id:")), b"")


def _again(own: int, other: int, opened: contextlib.ExitStack) -> tuple[int, int] | None:
    paths = [os.readlink(f"/proc/self/fd/{descriptor}".encode()) for descriptor in (own, other)]
    above = os.path.commonpath(paths)
    clone = syscalls.open_tree(syscalls.AT_FDCWD, above, _CLONE)
    opened.callback(os.close, clone)
    if os.fstatvfs(clone).f_flag & os.ST_RDONLY:
        return None
    found = []
    for descriptor, path in zip((own, other), paths, strict=True):
        found.append(open_beneath(clone, os.path.relpath(path, above) if path != above else b""))
        opened.callback(os.close, found[-1])
        if not os.path.samestat(os.fstat(found[-1]), os.fstat(descriptor)):
            return None
    return found[0], found[1]

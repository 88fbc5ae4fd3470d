"""What is done to the last component of a name, in a directory that is open: nothing here follows a link.

Only `tree` uses these; they decide nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs import syscalls
from rootfs.xattrs import DEFAULT_ACL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootfs.tarheader import Entry

READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""How an existing regular file is opened."""


def link_at(target_directory: int, target: bytes, directory: int, base: bytes) -> bool:
    """Link, following nothing; False when *base* is there already."""
    try:
        os.link(target, base, src_dir_fd=target_directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def date_at(directory: int, base: bytes, entry: Entry) -> None:
    """Set the times that *entry* says."""
    os.utime(base, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)


def write(file: int, data: bytes | memoryview) -> None:
    """Write all of *data*; the kernel may take less at once."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def write_all(file: int, pieces: Iterable[memoryview]) -> None:
    """Write *pieces* one after another."""
    for piece in pieces:
        write(file, piece)


def has_default_acl(root: int) -> bool:
    """Tell whether the store lies in a directory that gives what is made in it an ACL of its own."""
    try:
        os.getxattr(root, DEFAULT_ACL)
    except OSError:
        return False
    return True


def change_mode_at(directory: int, base: bytes, mode: int) -> bool:
    """Set the mode of something that is not a symbolic link; False for a node before Linux 6.6, which keeps its own."""
    try:
        syscalls.fchmodat2(directory, base, mode)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    else:
        return True
    if not stat.S_ISREG(os.stat(base, dir_fd=directory, follow_symlinks=False).st_mode):
        return False
    file = os.open(base, READ, dir_fd=directory)
    try:
        os.fchmod(file, mode)
    finally:
        os.close(file)
    return True

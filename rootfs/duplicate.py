"""One entry of a layer a second time: as a hard link where that can be, as an equal copy where it cannot.

Rule: the last component of a name is never followed, and a directory's metadata is equal to the nanosecond.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.beneath import open_beneath

if TYPE_CHECKING:
    from collections.abc import Callable

FICLONE: Final = 0x40049409
_COPY_BYTES: Final = 1 << 30
# What link(2) answers where another name of the same inode cannot be: too many links, another file system or project,
# a file that must not change.
_NO_LINK: Final = (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP)
# The kernel gives every new inode its label; copying it would only ever repeat that, or fail.
_KERNEL_LABEL: Final = b"security.selinux"


class Duplicator:
    """Gives the entries of one tree a second name in another.

    An inode that can take no more links is copied once; its further names become links to the copy, so that what was
    one file stays one file.

    Attributes:
        links: hard links made.
        copies: inodes made because no link could be.
        copied_bytes: logical bytes of the regular files among them.
    """

    def __init__(self, target_root: int) -> None:
        self.links = 0
        self.copies = 0
        self.copied_bytes = 0
        self._target_root = target_root
        self._copied: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def duplicate(self, source: int, target: int, place: tuple[bytes, bytes], status: os.stat_result) -> None:
        """Make an entry of the open directory *source*, which is no directory itself, appear in *target*.

        Args:
            source: directory that has the entry.
            target: directory that gets it.
            place: path of *target* under its root, and the entry's name.
            status: what the entry is.
        """
        name = place[1]
        first = self._copied.get((status.st_dev, status.st_ino))
        try:
            if first is None:
                os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            else:
                self._link_copy(first, target, name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            _copy(source, target, name, status)
            self._remember(place, status)
        else:
            self.links += 1

    def _link_copy(self, first: tuple[bytes, bytes], target: int, name: bytes) -> None:
        directory = open_beneath(self._target_root, first[0])
        try:
            os.link(first[1], name, src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(directory)

    def _remember(self, place: tuple[bytes, bytes], status: os.stat_result) -> None:
        self.copies += 1
        self.copied_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
        if status.st_nlink > 1:
            self._copied[status.st_dev, status.st_ino] = place


def _copy(source: int, target: int, name: bytes, status: os.stat_result) -> None:
    """Make an equal inode: contents, owner, attributes, mode, times."""
    if stat.S_ISREG(status.st_mode):
        _copy_file(source, target, name, status)
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
    _chown(status, lambda uid, gid: os.chown(name, uid, gid, dir_fd=target, follow_symlinks=False), target, name)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: bytes, status: os.stat_result) -> None:
    old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=source)
    try:
        new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            _copy_contents(old, new, status.st_size)
            copy_metadata(old, new)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_contents(old: int, new: int, size_bytes: int) -> None:
    """Share the extents where the file system can, else copy what is data and leave the holes."""
    try:
        fcntl.ioctl(new, FICLONE, old)
    except OSError:
        os.ftruncate(new, size_bytes)
        _copy_extents(old, new, size_bytes)


def _copy_extents(old: int, new: int, size_bytes: int) -> None:
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(old, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(old, start, os.SEEK_HOLE)
        _copy_range(old, new, start, end)
        position = end


def _copy_range(old: int, new: int, start: int, end: int) -> None:
    os.lseek(new, start, os.SEEK_SET)
    while start < end:
        sent = os.sendfile(new, old, start, min(_COPY_BYTES, end - start))
        if not sent:
            raise OSError(errno.EIO, "a file of a layer became shorter while it was copied")
        start += sent


def attributes(descriptor: int) -> dict[bytes, bytes]:
    """Return the extended attributes of an open file or directory, the kernel's own label left out."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(descriptor, name) for name in map(os.fsencode, names) if name != _KERNEL_LABEL}


def copy_metadata(old: int, new: int, *, without: Callable[[bytes], bool] = lambda _: False) -> None:
    """Give the open *new* the owner, attributes, mode and times of the open *old*, in the order that keeps them.

    Args:
        old: file or directory to copy from.
        new: file or directory to copy to.
        without: says which attributes to leave out.
    """
    set_metadata(new, os.fstat(old), {name: value for name, value in attributes(old).items() if not without(name)})


def set_metadata(new: int, status: os.stat_result, extended: dict[bytes, bytes]) -> None:
    """Give the open *new* the owner, mode and times of *status*, and the attributes *extended*."""
    _chown(status, lambda uid, gid: os.fchown(new, uid, gid), new, None)
    for name, value in extended.items():
        os.setxattr(new, name, value)
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))


def _chown(status: os.stat_result, change: Callable[[int, int], None], where: int, name: bytes | None) -> None:
    """Change the owner where it differs: an unprivileged process may not even repeat it."""
    now = os.fstat(where) if name is None else os.stat(name, dir_fd=where, follow_symlinks=False)
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        change(status.st_uid, status.st_gid)

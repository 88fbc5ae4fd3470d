"""Files that are whole or absent, whatever happens while they are written.

A temporary file beside the target is written and synced, renamed, and its directory synced. An error of fsync is
final: the kernel may have dropped the pages, so it is never tried again and called good.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from cri_shim.errors import NoSpace, StoreDamaged
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from pathlib import Path


_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def from_os_error(error: OSError, where: Path) -> NoSpace | StoreDamaged:
    """Say what the kernel answered when the store at *where* was used: no room, or a disk that fails."""
    what = error.strerror or "input or output failed"
    if error.errno in _NO_ROOM:
        return NoSpace(f"{where}: {what}; free some room there and pull again")
    return StoreDamaged(f"{error.filename or where}: {what}")


def write_durably(path: Path, data: bytes) -> None:
    """Put *data* at *path*, mode 0600; after the return it survives a power cut.

    Raises:
        OSError: nothing new is at *path* then, or the directory could not be synced and it may vanish again: to be
            believed it has to be written anew.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _write(temporary, data)
        failpoint("file.rename")
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in *path* survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        failpoint("directory.sync")
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        failpoint("file.sync")
        os.fsync(fd)
    finally:
        os.close(fd)

"""Room that is kept for removing: a file that is thrown off when the disk is full.

To forget an image takes some pages of the index; on a disk without a free block the one thing that would help could not
be done.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cri_shim.errors import NoSpace
from cri_shim.store.durable import from_os_error

if TYPE_CHECKING:
    from pathlib import Path

BALLAST_BYTES: Final = 1 << 20


class Ballast:
    """A file of `BALLAST_BYTES` at *path*."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded = False

    def load(self) -> None:
        """Have the file there, if there is room for it."""
        if self._loaded:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
            self._loaded = True
        except OSError:
            self.throw_off()
        finally:
            os.close(fd)

    def throw_off(self) -> bool:
        """Delete the file; False when it was not there."""
        self._loaded = False
        with suppress(OSError):
            os.unlink(self._path)
            return True
        return False


def lacks_room(directory: Path) -> bool:
    """Tell whether the disk, or the quota of *directory*, has no room for as much as a `Ballast`."""
    try:
        fd = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, bytes(BALLAST_BYTES), 0)
        finally:
            os.close(fd)
    except OSError as error:
        return isinstance(from_os_error(error, directory), NoSpace)
    return False

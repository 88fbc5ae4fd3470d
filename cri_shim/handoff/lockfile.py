"""The files that runtimes read, changed under the lock protocol of containers-storage.

Readers hold a shared POSIX lock on `layers.lock` or `images.lock` and read the file again when the first 64 bytes of
the lock file are other ones. A writer takes the lock, writes 64 new bytes, and puts the new file in place of the old.

Rule: one descriptor per lock file and process, for a POSIX lock ends with any close; it is held for the rewrite only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.errors import HandOffFailed
from cri_shim.store.durable import write_durably
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_SECONDS = 10.0
"""How long a reader may keep us waiting; they hold a lock for milliseconds."""

_STAMP_BYTES = 64
_POLL_SECONDS = 0.002


class LockedFile:
    """One JSON file with its lock file beside it. Every method blocks."""

    def __init__(self, directory: Path, name: str) -> None:
        """*name* is `layers` or `images`; the lock file is made when it is missing.

        Raises:
            OSError: it can be neither made nor opened.
        """
        self.path = directory / f"{name}.json"
        self._lock_path = directory / f"{name}.lock"
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._written: tuple[int, ...] | None = None
        self._data: bytes | None = None

    def close(self) -> None:
        """Close the lock file."""
        os.close(self._lock)

    def read(self) -> bytes:
        """Return what stands in the file, nothing when there is none."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def replace(self, data: bytes) -> None:
        """Put *data* in the place of what stands there, unless it is the same.

        Raises:
            HandOffFailed: a reader does not let go of the lock.
            OSError: writing failed; the old file is still there.
        """
        if data == self._data and self.is_ours():
            return
        with self._locked():
            failpoint("published.rewrite")
            os.pwrite(self._lock, os.urandom(_STAMP_BYTES), 0)
            write_durably(self.path, data)
        self._data, self._written = data, _signature(self.path)

    def is_ours(self) -> bool:
        """Tell whether the file is the one that was written last, by what `stat` says."""
        return self._written is not None and _signature(self.path) == self._written

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._try_lock():
            if time.monotonic() > deadline:
                raise HandOffFailed(
                    f"{self._lock_path} is held by another program for {LOCK_SECONDS:.0f} s: look for a podman, "
                    "buildah or crio that hangs, and pull again"
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns

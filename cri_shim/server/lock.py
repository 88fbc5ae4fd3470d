"""One daemon on one directory: a lock that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Hold `<directory>/lock` while the block runs. *what* is how a message calls the directory.

    The file stays when the lock is given back: two processes that lock and unlink would each lock a file of their own.

    Raises:
        ConfigError: another process holds it (its pid is named), or the file cannot be written.
    """
    path = directory / "lock"
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        raise ConfigError(f"{what} {directory} cannot be used: {path}: {error.strerror}") from error
    try:
        _take(fd, directory, what)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _take(fd: int, directory: Path, what: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        name = f"pid {holder}" if holder.isascii() and holder.isdigit() else "another process"
        raise ConfigError(
            f"{what} {directory} is in use by {name}; stop it, or give this one a {what} of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

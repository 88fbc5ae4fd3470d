"""The key of the hashes that stand for credentials in the index.

Without it they say nothing; with it a guessed password can be compared with them. So it lies beside the index with mode
0600 and nowhere else. A key that is lost or damaged is made anew: what was recorded under the old one does not count
any more, which is the safe way to be wrong.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cri_shim.store.durable import write_durably

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES: Final = 32


def read_key(path: Path) -> bytes:
    """Return the key at *path*, made when there is none that can be used. Blocks on the disk.

    Raises:
        OSError: it can be neither read nor written.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return _made(path)
    try:
        key = os.read(fd, KEY_BYTES + 1)
        private = os.fstat(fd).st_mode & 0o077 == 0
    finally:
        os.close(fd)
    return key if private and len(key) == KEY_BYTES else _made(path)


def _made(path: Path) -> bytes:
    key = os.urandom(KEY_BYTES)
    write_durably(path, key)
    return key

"""Whiteouts that have nothing to hide.

Below an opaque directory there is nothing of the lower layers, so a whiteout there is redundant, and worse: overlayfs
does not merge such a directory and would list the device itself as a name that cannot be looked up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rootfs.beneath import open_beneath
from rootfs.parents import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Iterable


def by_component(path: bytes) -> bytes:
    """Give a key that sorts paths so that all that lies beneath a directory follows it at once: `a`, `a/b`, `a-`."""
    return path.replace(b"/", b"\0")


def drop_strays(root: int, opaque: Iterable[bytes]) -> int:
    """Remove the whiteouts beneath the directories *opaque* of *root*; return how many.

    Raises:
        OSError: the kernel's own answer.
    """
    dropped = 0
    done: bytes | None = None
    for top in sorted(opaque, key=by_component):
        if done is not None and (not done or top.startswith(done + b"/")):
            continue
        done = top
        left = [top]
        while left:
            path = left.pop()
            count, directories = _drop_in(root, path)
            dropped += count
            left += [path + b"/" + name if path else name for name in directories]
    return dropped


def _drop_in(root: int, path: bytes) -> tuple[int, list[bytes]]:
    """Remove the whiteouts in one directory; return how many, and the names of the directories in it."""
    directory = open_beneath(root, path)
    try:
        strays, below = [], []
        with os.scandir(directory) as entries:
            for entry in entries:  # only these are remembered: files may be millions
                if entry.is_dir(follow_symlinks=False):
                    below.append(os.fsencode(entry.name))
                elif _hides(entry):
                    strays.append(os.fsencode(entry.name))
        for name in strays:
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    return len(strays), below


def _hides(entry: os.DirEntry[str]) -> bool:
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(entry.stat(follow_symlinks=False))

"""What whiteouts come to once the whole layer is there: their order in the tar makes no difference.

A name that the layer hides and has: a directory is opaque, anything else just stays. A hidden directory that only
whiteouts led to, which mean nothing below it, goes, and the whiteout takes its place.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from rootfs.beneath import open_beneath
from rootfs.strays import by_component, drop_strays

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Owner = tuple[int, int]


def open_standing(root: int, path: bytes) -> int:
    """Open a directory by its path, -1 when something else, or nothing, took its place.

    Raises:
        OSError: the kernel's own answer.
    """
    try:
        return open_beneath(root, path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return -1


def standing(root: int, paths: Iterable[bytes]) -> set[bytes]:
    """Give those of *paths* that are directories now."""
    found = set()
    for path in paths:
        directory = open_standing(root, path)
        if directory >= 0:
            os.close(directory)
            found.add(path)
    return found


def settle(
    root: int, hidden: Mapping[bytes, Owner], opaque: Collection[bytes], implied: Collection[bytes], *, privileged: bool
) -> tuple[set[bytes], set[bytes], int]:
    """Make of the whiteouts what they mean.

    Args:
        root: descriptor of the layer's tree.
        hidden: names that a whiteout hides and that the layer has had as well, with the owner of the whiteout.
        opaque: directories with an opaque mark.
        implied: directories that no entry described.
        privileged: owners can be set.

    Returns:
        The opaque directories, the implied ones, and how many whiteouts there are more, or less.

    Raises:
        OSError: the kernel's own answer.
    """
    marked, bare = standing(root, opaque), standing(root, implied)
    anew = standing(root, hidden)
    tops = marked | anew
    change = -drop_strays(root, tops)
    for path in _empty(root, anew, bare - marked):
        bare.discard(path)
        if path in anew:
            anew.discard(path)
            tops.discard(path)
            if not _is_below(path, tops):
                _hide(root, path, hidden[path] if privileged else None)
                change += 1
    return tops, bare - anew, change


def _empty(root: int, hidden: set[bytes], candidates: set[bytes]) -> list[bytes]:
    """Remove those *candidates* in hidden directories, or hidden themselves, that are empty, the deepest first."""
    removed = []
    for path in sorted(candidates, key=by_component, reverse=True) if hidden else ():
        if path and (path in hidden or _is_below(path, hidden)):
            parent, _, base = path.rpartition(b"/")
            directory = open_beneath(root, parent)
            try:
                os.rmdir(base, dir_fd=directory)
                removed.append(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            finally:
                os.close(directory)
    return removed


def _is_below(path: bytes, tops: Collection[bytes]) -> bool:
    while path:
        path = path.rpartition(b"/")[0]
        if path in tops:
            return True
    return False


def _hide(root: int, path: bytes, owner: Owner | None) -> None:
    parent, _, base = path.rpartition(b"/")
    directory = open_beneath(root, parent)
    try:
        os.mknod(base, stat.S_IFCHR, 0, dir_fd=directory)
        if owner is not None:
            os.chown(base, *owner, dir_fd=directory, follow_symlinks=False)
    finally:
        os.close(directory)

"""Layers merged into one tree, for a reader that cannot mount as many: what an overlay of them shows, of hard links.

Rule: a layer is laid over what is there, the lowest first: a whiteout removes, an opaque directory hides everything in
it, anything but a directory takes the place of what has its name, and a directory looks as its uppermost layer has it.
The trees are hostile: every path is resolved without links and beneath.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from rootfs.beneath import open_beneath
from rootfs.duplicate import Duplicator, attributes, copy_metadata
from rootfs.forms import FormMade
from rootfs.overlay import OPAQUE_TRUSTED, OPAQUE_USER, is_whiteout
from rootfs.remove import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable

_MARKS = (OPAQUE_TRUSTED, OPAQUE_USER)


def flatten(sources: Iterable[int], target: int) -> FormMade:
    """Fill the empty tree *target* with the trees *sources*, the lowest first, as an overlay of them would show it.

    Raises:
        OSError: reading or writing failed; what was made is the caller's to remove.
    """
    merged = FormMade(0, 0, 0, 0, 0)
    for source in sources:
        one = _Laying(source, target).lay()
        merged = FormMade(
            merged.directories + one.directories,
            merged.links + one.links,
            merged.copies + one.copies,
            merged.copied_bytes + one.copied_bytes,
            merged.dropped + one.dropped,
        )
    return merged


class _Laying:
    """Lays one tree over another, directory by directory."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._duplicator = Duplicator(target)
        self._directories = 0
        self._dropped = 0

    def lay(self) -> FormMade:
        """Walk the source: fill each directory on the way in, give it its metadata on the way out."""
        left = [(b"", False)]
        while left:
            path, filled = left.pop()
            source, target = open_beneath(self._source, path), -1
            try:
                target = open_beneath(self._target, path)
                if filled:
                    copy_metadata(source, target, without=lambda name: name in _MARKS)
                else:
                    left.append((path, True))
                    left.extend((below, False) for below in self._fill(source, target, path))
            finally:
                os.close(source)
                if target >= 0:
                    os.close(target)
        made = self._duplicator
        return FormMade(self._directories, made.links, made.copies, made.copied_bytes, self._dropped)

    def _fill(self, source: int, target: int, path: bytes) -> list[bytes]:
        """Lay the entries of one directory, and return the paths of the directories among them."""
        os.fchmod(target, 0o700)
        if any(attributes(source).get(mark) == b"y" for mark in _MARKS):
            for name in map(os.fsencode, os.listdir(target)):
                self._remove(target, name)
        below = []
        with os.scandir(source) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                status = os.stat(name, dir_fd=source, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    self._make_directory(target, name)
                    below.append(path + b"/" + name if path else name)
                    continue
                self._remove(target, name)
                if is_whiteout(status):
                    self._dropped += 1
                else:
                    self._duplicator.duplicate(source, target, (path, name), status)
        return below

    def _make_directory(self, target: int, name: bytes) -> None:
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                return
            os.unlink(name, dir_fd=target)
        except FileNotFoundError:
            pass
        os.mkdir(name, 0o700, dir_fd=target)
        self._directories += 1

    def _remove(self, target: int, name: bytes) -> None:
        failure = remove_tree(target, name)
        if failure is not None:
            raise failure

"""Removing trees that layers made: any depth, any name, any mode, and nothing outside.

Rule: one descriptor and no recursion; a directory is entered by its name without following links or crossing a mount,
and left by `..`, which must be the directory it was entered from. What cannot be removed (an immutable file, a mount
point) is left and told; everything around it goes.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rootfs.beneath import DIRECTORY, open_child
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Stuck:
    """Something that could not be removed: its name in the trash, and the first reason."""

    name: str
    reason: str


@dataclass(slots=True)
class _Frame:
    """A directory that is being emptied: what it is called, what it is, what of it is still to be entered."""

    name: bytes
    identity: tuple[int, int]
    below: list[bytes] = field(default_factory=list)


class _Removal:
    """Removes one entry of a directory with everything beneath it."""

    def __init__(self, directory: int, name: bytes) -> None:
        self._here = os.dup(directory)
        self._frames = [_Frame(b"", _identity(os.fstat(directory)), [name])]
        self.failure: OSError | None = None

    def run(self) -> None:
        """Remove all that can be removed; `failure` keeps the first reason why something could not."""
        try:
            while len(self._frames) > 1 or self._frames[0].below:
                if self._frames[-1].below:
                    self._try(self._enter, self._frames[-1].below.pop())
                else:
                    self._leave()
        except OSError as error:
            self.failure = self.failure or error
        finally:
            os.close(self._here)

    def _try(self, action: Callable[[bytes], None], name: bytes) -> None:
        try:
            action(name)
        except FileNotFoundError:
            return
        except OSError as error:
            self.failure = self.failure or error

    def _enter(self, name: bytes) -> None:
        try:
            child = _open_writable(self._here, name)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            os.unlink(name, dir_fd=self._here)
            return
        os.close(self._here)
        self._here = child
        self._frames.append(_Frame(name, _identity(os.fstat(child))))
        self._clear()

    def _clear(self) -> None:
        """Unlink what is no directory here, and note the directories."""
        with os.scandir(self._here) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    self._frames[-1].below.append(name)
                else:
                    self._try(self._unlink, name)

    def _unlink(self, name: bytes) -> None:
        os.unlink(name, dir_fd=self._here)

    def _leave(self) -> None:
        emptied = self._frames.pop()
        above = os.open("..", DIRECTORY, dir_fd=self._here)
        os.close(self._here)
        self._here = above
        if _identity(os.fstat(above)) != self._frames[-1].identity:
            raise OSError(errno.EXDEV, "the tree was moved while it was removed")
        self._try(self._rmdir, emptied.name)

    def _rmdir(self, name: bytes) -> None:
        failpoint("trash.rmdir")
        os.rmdir(name, dir_fd=self._here)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_writable(parent: int, name: bytes) -> int:
    """Open a directory to empty it; one of our own whose mode forbids that gets another mode first."""
    try:
        child = open_child(parent, name)
    except PermissionError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
        os.chmod(name, 0o700, dir_fd=parent)
        child = open_child(parent, name)
    try:
        if os.fstat(child).st_mode & 0o700 != 0o700:
            os.fchmod(child, 0o700)
    except OSError:
        os.close(child)
        raise
    return child


def remove_tree(directory: int, name: bytes) -> OSError | None:
    """Remove the entry *name* of *directory* and everything beneath it; the first failure, or None."""
    removal = _Removal(directory, name)
    removal.run()
    return removal.failure


def empty_directory(directory: int) -> tuple[Stuck, ...]:
    """Remove everything in *directory*, and return what could not be removed.

    What is added meanwhile is removed as well; nothing is tried twice.
    """
    stuck: list[Stuck] = []
    tried: set[bytes] = set()
    while names := [name for name in map(os.fsencode, os.listdir(directory)) if name not in tried]:
        tried.update(names)
        for name in names:
            failure = remove_tree(directory, name)
            if failure is not None:
                stuck.append(Stuck(os.fsdecode(name), failure.strerror or "input or output failed"))
    return tuple(stuck)

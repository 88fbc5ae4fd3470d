"""The directory that an entry goes into, as a descriptor.

Rule: the kernel opens every one, beneath the root and without following a link (openat2). Where a name has links or
directories that are not there, a walk first finds, one component at a time and never following, which path without
links it stands for; a link leads no further out than the root. So each directory is known by one path, and its
descriptor is the directory of that path whatever the walk did.

Descriptors of the latest parents are kept. Whoever replaces a link or a directory must call `forget`: resolved parents
that outlived such a replacement are how CVE-2025-47290 came to be.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.beneath import DIRECTORY, open_beneath
from rootfs.errors import LayerRejected, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootfs.limits import Limits

Place = tuple[int, bytes]
"""A directory: its descriptor, and its path from the root without links. The descriptor stays open until the next but
one directory is looked up; whoever needs it longer duplicates it."""

_KEPT: Final = 16
_HOPS: Final = 40
_STEPS: Final = 16_384
_NOT_PLAIN: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Missing(enum.Enum):
    """What to do about parents that are not there, or that this layer hides."""

    MAKE = enum.auto()
    MAKE_UNLESS_HIDDEN = enum.auto()
    GIVE_UP = enum.auto()


def is_whiteout(status: os.stat_result) -> bool:
    """Tell whether a status is that of a whiteout: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class Parents:
    """Finds directories beneath *root*.

    Args:
        root: descriptor of the root; not closed here.
        limits: `depth` and `path_bytes` count here.
        make: makes the directory that a descriptor and a name say, whose path is given too, in place of a whiteout
            or of nothing.
        passed: is told each directory that a name with links leads through, by its path.
    """

    __slots__ = ("_kept", "_limits", "_make", "_passed", "_retired", "_root")

    def __init__(
        self,
        root: int,
        limits: Limits,
        make: Callable[[int, bytes, bytes], None],
        passed: Callable[[bytes], None] | None = None,
    ) -> None:
        self._root = root
        self._limits = limits
        self._make = make
        self._passed = passed
        self._kept: dict[bytes, Place] = {b"": (root, b"")}
        self._retired: list[int] = []

    def get(self, name: bytes, missing: Missing) -> Place | None:
        """Give the directory *name*, a cleaned name, or None where *missing* says so.

        Raises:
            LayerRejected: something on the way is not a directory, or links go in circles.
            LimitExceeded: too deep.
            OSError: the kernel's own answer.
        """
        place = self._kept.get(name)
        if place is None:
            self._close_retired()
            place = self._look_up(name, missing)
            if place is not None:
                self.keep(name, place)
        return place

    def known(self, name: bytes) -> Place | None:
        """Give the directory *name* if it was looked up a short while ago."""
        return self._kept.get(name)

    def keep(self, name: bytes, place: Place) -> None:
        """Remember that *name* is *place*, whose descriptor is closed here one day."""
        self._close_retired()
        old = self._kept.pop(name, None)
        if old is not None:
            self._retired.append(old[0])
        elif len(self._kept) > _KEPT:
            oldest = next(key for key in self._kept if key)
            self._retired.append(self._kept.pop(oldest)[0])
        self._kept[name] = place

    def forget(self) -> None:
        """Look everything up again: a link or a directory was replaced. Descriptors in use stay open for now."""
        self._retired += [descriptor for name, (descriptor, _) in self._kept.items() if name]
        self._kept = {b"": (self._root, b"")}

    def close(self) -> None:
        """Close every descriptor but the root's."""
        self.forget()
        self._close_retired()

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for descriptor in retired:
            os.close(descriptor)

    def _look_up(self, name: bytes, missing: Missing) -> Place | None:
        try:
            return open_beneath(self._root, name), name
        except OSError as error:
            if error.errno not in _NOT_PLAIN:
                raise
        path = _Walk(self._root, self._limits, self._make, missing, self._passed).to(name)
        return None if path is None else (open_beneath(self._root, path), path)


class _Walk:
    """Finds the path without links of a name, and makes what is missing of it."""

    def __init__(
        self,
        root: int,
        limits: Limits,
        make: Callable[[int, bytes, bytes], None],
        missing: Missing,
        passed: Callable[[bytes], None] | None,
    ) -> None:
        self._root = root
        self._limits = limits
        self._make = make
        self._missing = missing
        self._passed = passed
        self._names: list[bytes] = []
        self._hops = 0
        self._here = -1

    def to(self, name: bytes) -> bytes | None:
        left = name.split(b"/")[::-1]
        self._enter(open_beneath(self._root, b""))
        try:
            for _ in range(_STEPS):
                if not left:
                    return b"/".join(self._names)
                if not self._step(left.pop(), left):
                    return None
        finally:
            os.close(self._here)
        raise LayerRejected(f"its parents take more than {_STEPS} steps to find")

    def _enter(self, directory: int) -> None:
        if self._here >= 0:
            os.close(self._here)
        self._here = directory

    def _step(self, name: bytes, left: list[bytes]) -> bool:
        """Go one component on; False when the way ends and that is well."""
        if name == b"..":
            if self._names:
                self._names.pop()
                self._enter(os.open(b"..", DIRECTORY, dir_fd=self._here))
            return True
        if name in (b"", b"."):
            return True
        try:
            below = os.open(name, DIRECTORY, dir_fd=self._here)
        except OSError as error:
            if error.errno not in _NOT_PLAIN:
                raise
            return self._obstacle(name, left)
        self._descend(below, name)
        return True

    def _descend(self, below: int, name: bytes) -> None:
        self._enter(below)
        self._names.append(name)
        if len(self._names) > self._limits.depth:
            raise LimitExceeded(f"it lies deeper than {self._limits.depth} directories", "depth")
        if self._passed is not None:
            self._passed(b"/".join(self._names))

    def _obstacle(self, name: bytes, left: list[bytes]) -> bool:
        """Follow the link, make the directory, or end here."""
        try:
            status = os.stat(name, dir_fd=self._here, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is not None and stat.S_ISLNK(status.st_mode):
            self._follow(os.readlink(name, dir_fd=self._here), left)
            return True
        hidden = status is not None and is_whiteout(status)
        if status is not None and not hidden:
            raise LayerRejected("one of its parents is not a directory")
        if self._missing is Missing.GIVE_UP or (hidden and self._missing is Missing.MAKE_UNLESS_HIDDEN):
            return False
        self._make(self._here, name, b"/".join((*self._names, name)))
        self._descend(os.open(name, DIRECTORY, dir_fd=self._here), name)
        return True

    def _follow(self, target: bytes, left: list[bytes]) -> None:
        self._hops += 1
        if self._hops > _HOPS:
            raise LayerRejected(f"its parents lead through more than {_HOPS} links")
        if target.startswith(b"/"):
            self._names = []
            self._enter(open_beneath(self._root, b""))
        left.extend(target.split(b"/")[::-1])

"""Forms of a layer: the same content where it stands matters (bottom, chain, again), sharing every file.

- *bottom*: used as the lowest layer; whiteouts and opaque marks, which would show as ghosts, are left out.
- *chain*: directories that the layer implied without an entry of their own look as they do in the nearest parent layer
  that has them; made only when that differs. containerd does the same while it unpacks (`mkparent`).
- *again*: the same layer a second time in one image, for overlayfs takes no directory twice.

Rule: directories are made anew with equal metadata, everything else is one more name of the same inode. The walk holds
two descriptors at a time and no recursion; trees are hostile, so every path is resolved without links and beneath.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs.beneath import open_beneath, open_in_root
from rootfs.duplicate import Duplicator, attributes, copy_metadata, set_metadata
from rootfs.errors import LimitExceeded
from rootfs.overlay import OPAQUE_TRUSTED, OPAQUE_USER, PRIVATE_PREFIXES, is_whiteout
from rootfs.strays import by_component

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KINDS: Final = ("bottom", "chain", "again", "flat")
"""The last is no form of one layer, but all layers of an image in one (`rootfs.flatten`)."""

_LOOKUPS: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Form:
    """What a form was made of: the layer *source*, the layers below it, nearest first, and what it implied."""

    kind: str
    source: str
    parents: tuple[str, ...] = ()
    implied: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FormMade:
    """What a form costs beside the layer that it was made from.

    Attributes:
        directories: directories made, the root included.
        links: entries that share their inode with the layer.
        copies: inodes made where no link could be.
        copied_bytes: bytes of regular files among the copies.
        dropped: whiteouts left out.
    """

    directories: int
    links: int
    copies: int
    copied_bytes: int
    dropped: int

    @property
    def inodes(self) -> int:
        """Inodes that the form takes for itself."""
        return self.directories + self.copies


@dataclass(frozen=True, slots=True)
class Look:
    """How a directory looks: what `stat` says, and its attributes without those that are overlayfs's or trusted."""

    status: os.stat_result
    extended: tuple[tuple[bytes, bytes], ...]

    def same(self, other: Look) -> bool:
        """Say whether owner, mode and attributes are equal; times alone never make a form."""
        mine, its = self.status, other.status
        return (mine.st_uid, mine.st_gid, mine.st_mode, self.extended) == (
            its.st_uid,
            its.st_gid,
            its.st_mode,
            other.extended,
        )


def is_private(name: bytes) -> bool:
    """Tell whether an attribute is overlayfs's own, or for privileged processes only."""
    return name.startswith((b"trusted.", *PRIVATE_PREFIXES))


def is_opaque_mark(name: bytes) -> bool:
    """Tell whether an attribute marks an opaque directory."""
    return name in (OPAQUE_TRUSTED, OPAQUE_USER)


def _look(directory: int) -> Look:
    public = {name: value for name, value in attributes(directory).items() if not is_private(name)}
    return Look(os.fstat(directory), tuple(sorted(public.items())))


def inherited(source: int, parents: Sequence[int], implied: Iterable[bytes]) -> dict[bytes, Look]:
    """Return how those of the *implied* directories of the tree *source* must look that look otherwise now.

    Args:
        source: descriptor of the layer's tree.
        parents: descriptors of the trees below it, nearest first.
        implied: paths; the root is never one of them.

    Raises:
        LimitExceeded: that is too much work.
    """
    groups: dict[bytes, list[bytes]] = {}
    for path in implied:
        if path.startswith(b"/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if path:
            above, _, name = path.rpartition(b"/")
            groups.setdefault(above, []).append(name)
    search = _Search(source, parents)
    for above in sorted(groups, key=by_component):
        search.look_in(above, groups[above])
    return search.changed


class _Search:
    """Looks implied directories up in the parents: one directory after another, what lies above it first.

    Parents that lack a directory are not asked for anything beneath it, so that a step is mostly one name in an open
    directory. What is left of parents times directories is bounded, for the layers may be made for this.
    """

    def __init__(self, source: int, parents: Sequence[int]) -> None:
        self.changed: dict[bytes, Look] = {}
        self._source = source
        self._parents = tuple(parents)
        self._above: list[tuple[bytes, tuple[int, ...]]] = []
        self._lookups = 0

    def look_in(self, above: bytes, names: list[bytes]) -> None:
        """Look up the implied directories *names* of the directory *above*; paths come sorted by component."""
        while self._above and not above.startswith(self._above[-1][0] + b"/"):
            self._above.pop()
        opened = self._open(above, self._above[-1][1] if self._above else self._parents)
        try:
            if above:
                self._above.append((above, tuple(parent for parent, _ in opened)))
            for name in names if opened else ():
                self._compare(above + b"/" + name if above else name, name, opened)
        finally:
            for _, directory in opened:
                os.close(directory)

    def _open(self, above: bytes, parents: tuple[int, ...]) -> list[tuple[int, int]]:
        """Open the directory in every parent that has it; what is not a directory hides it in all further ones."""
        opened: list[tuple[int, int]] = []
        try:
            for parent in parents:
                self._count(1 + above.count(b"/") // 32)
                directory, hides = _open_in(parent, above)
                if directory >= 0:
                    opened.append((parent, directory))
                if hides:
                    break
        except BaseException:
            for _, directory in opened:
                os.close(directory)
            raise
        return opened

    def _compare(self, path: bytes, name: bytes, opened: list[tuple[int, int]]) -> None:
        for parent, above in opened:
            self._count(1)
            try:
                directory, hides = open_beneath(above, name), True
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                directory, hides = _open_in(parent, path)  # a link, perhaps: the slow way
            if directory >= 0:
                self._keep(path, directory)
            if hides or directory >= 0:
                return

    def _keep(self, path: bytes, directory: int) -> None:
        """Compare what the parent has, open as *directory*, with what the layer has."""
        try:
            wanted = _look(directory)
        finally:
            os.close(directory)
        own = open_beneath(self._source, path)
        try:
            if not wanted.same(_look(own)):
                self.changed[path] = wanted
        finally:
            os.close(own)

    def _count(self, lookups: int) -> None:
        self._lookups += lookups
        if self._lookups > _LOOKUPS:
            raise LimitExceeded("its implied directories take too many steps to find in the layers below", "lookups")


def _open_in(parent: int, path: bytes) -> tuple[int, bool]:
    """Open a directory in a parent, -1 where there is none, and tell whether it hides what further parents have."""
    try:
        return open_in_root(parent, path), False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return -1, error.errno != errno.ENOENT


class _Form:
    """Makes the second tree, directory by directory."""

    def __init__(self, source: int, target: int, *, bottom: bool, looks: Mapping[bytes, Look]) -> None:
        self._source = source
        self._target = target
        self._bottom = bottom
        self._looks = looks
        self._duplicator = Duplicator(target)
        self._directories = 0
        self._dropped = 0

    def make(self) -> FormMade:
        """Walk the source: fill each directory on the way in, give it its metadata on the way out."""
        left = [(b"", False)]
        while left:
            path, filled = left.pop()
            if filled:
                self._finish(path)
            else:
                left.append((path, True))
                left.extend((below, False) for below in self._fill(path))
        made = self._duplicator
        return FormMade(self._directories, made.links, made.copies, made.copied_bytes, self._dropped)

    def _fill(self, path: bytes) -> list[bytes]:
        """Make the entries of one directory, and return the paths of the directories among them."""
        source = open_beneath(self._source, path)
        try:
            target = open_beneath(self._target, path)
            try:
                return self._entries(source, target, path)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _entries(self, source: int, target: int, path: bytes) -> list[bytes]:
        below = []
        with os.scandir(source) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(name, 0o700, dir_fd=target)
                    below.append(path + b"/" + name if path else name)
                    continue
                status = os.stat(name, dir_fd=source, follow_symlinks=False)
                if self._bottom and is_whiteout(status):
                    self._dropped += 1
                else:
                    self._duplicator.duplicate(source, target, (path, name), status)
        return below

    def _finish(self, path: bytes) -> None:
        source = open_beneath(self._source, path)
        try:
            target = open_beneath(self._target, path)
            try:
                self._give_metadata(source, target, path)
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._directories += 1

    def _give_metadata(self, source: int, target: int, path: bytes) -> None:
        look = self._looks.get(path)
        if look is None:
            copy_metadata(source, target, without=is_opaque_mark if self._bottom else lambda _: False)
            return
        marks = {name: value for name, value in attributes(source).items() if is_private(name)}
        set_metadata(target, look.status, marks | dict(look.extended))


def make_form(source: int, target: int, *, bottom: bool = False, looks: Mapping[bytes, Look] | None = None) -> FormMade:
    """Fill the empty tree *target* with the tree *source* in another form.

    Args:
        source: descriptor of a committed layer's tree.
        target: descriptor of the new tree, mode 0700 or wider while it is filled.
        bottom: leave whiteouts and opaque marks out.
        looks: directories that look otherwise, from `inherited`.

    Raises:
        OSError: reading or writing failed; what was made is the caller's to remove.
    """
    return _Form(source, target, bottom=bottom, looks=looks or {}).make()


def mark_opaque(tree: int, paths: Iterable[bytes], attribute: bytes) -> None:
    """Mark directories of a freshly unpacked tree as opaque; their times stay as they are.

    The paths come from the child that read the layer, so they are hostile: each must lead to a directory beneath
    *tree* without any link.

    Raises:
        OSError: a path leads elsewhere or to nothing, or the file system takes no attribute.
    """
    for path in paths:
        directory = open_beneath(tree, path)
        try:
            os.setxattr(directory, attribute, b"y")
        finally:
            os.close(directory)

"""Entries of a chain: what the containers-storage overlay driver needs to find a layer at its place in an image.

    overlay/<id>/link     short name of the entry: 26 letters
    overlay/<id>/lower    short names of the entries below it, nearest first; absent for the lowest
    overlay/<id>/diff     the tree: of a layer that has this very name, or an absolute link to the layer's
    overlay/l/<letters> -> ../<layer>/diff

An entry that is not itself a layer (its `diff` is a link) has no content: it is made and dropped as often as wanted.

Rule: an entry is whole or absent, and it is on the disk before anyone is told of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from rootfs import syscalls
from rootfs.beneath import DIRECTORY
from rootfs.failpoints import failpoint
from rootfs.layout import DIFF, LINK, SEAL, Layout, checked_name, drop_link, make_link, move_to_trash
from rootfs.overlay import link_name

LOWER: Final = b"lower"

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LONGEST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """An entry of a chain.

    Attributes:
        name: its directory below `overlay/`.
        layer: directory of the layer whose tree it has, *name* itself where it is a layer.
        below: names of the entries below it, nearest first.
    """

    name: str
    layer: str
    below: tuple[str, ...]

    @property
    def lower(self) -> bytes:
        """Contents of `lower`."""
        return ":".join(f"l/{link_name(name)}" for name in self.below).encode("ascii")


def make_entries(layout: Layout, entries: tuple[ChainEntry, ...], *, synced: bool) -> int:
    """Make the entries that are missing or different; return how many.

    Raises:
        FileNotFoundError: the tree of a layer is not there.
        OSError: writing or syncing failed; entries that were made stay, and are no harm.
    """
    made = sum(_make(layout, entry) for entry in entries)
    if made and synced:
        failpoint("chain.syncfs")
        syscalls.syncfs(layout.root)
    return made


def drop_entries(layout: Layout, names: tuple[str, ...]) -> None:
    """Drop entries that are no layers; a layer of such a name keeps its tree."""
    for name in names:
        if is_entry(layout, name):
            move_to_trash(layout, layout.overlay, name)
            drop_link(layout, name)


def is_entry(layout: Layout, name: str) -> bool:
    """Say whether *name* is an entry that is no layer: its tree is a link, and it has no seal."""
    try:
        status = os.stat(f"{name}/diff", dir_fd=layout.overlay, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISLNK(status.st_mode) and not _exists(layout, f"{name}/{os.fsdecode(SEAL)}")


def _exists(layout: Layout, path: str) -> bool:
    try:
        os.stat(path, dir_fd=layout.overlay, follow_symlinks=False)
    except OSError:
        return False
    return True


def _make(layout: Layout, entry: ChainEntry) -> bool:
    tree = os.stat(f"{checked_name(entry.layer)}/diff", dir_fd=layout.overlay, follow_symlinks=False)
    if not stat.S_ISDIR(tree.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), entry.layer)
    changed = _make_own(layout, entry) if entry.name == entry.layer else _make_linked(layout, entry)
    make_link(layout, entry.name, entry.layer)
    return changed


def _make_own(layout: Layout, entry: ChainEntry) -> bool:
    """Give a layer that stands at its own place the list of what is below it."""
    directory = os.open(entry.name, DIRECTORY, dir_fd=layout.overlay)
    try:
        if _read(directory, LOWER) == entry.lower:
            return False
        if not entry.lower:
            os.unlink(LOWER, dir_fd=directory)
            return True
        new = LOWER + b".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)
        _write(directory, new, entry.lower)
        failpoint("chain.lower.rename")
        os.rename(new, LOWER, src_dir_fd=directory, dst_dir_fd=directory)
        return True
    finally:
        os.close(directory)


def _make_linked(layout: Layout, entry: ChainEntry) -> bool:
    target = f"{layout.path}/overlay/{entry.layer}/diff"
    if _is(layout, entry, target):
        return False
    staged = f"chain.{os.urandom(8).hex()}"
    os.mkdir(staged, 0o700, dir_fd=layout.staging)
    try:
        _fill(layout, staged, entry, target)
        drop_entries(layout, (entry.name,))
        failpoint("chain.rename")
        os.rename(staged, entry.name, src_dir_fd=layout.staging, dst_dir_fd=layout.overlay)
    except OSError as error:
        move_to_trash(layout, layout.staging, staged)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not _is(layout, entry, target):
            raise  # else somebody else made the same one meanwhile
    return True


def _fill(layout: Layout, staged: str, entry: ChainEntry, target: str) -> None:
    directory = os.open(staged, DIRECTORY, dir_fd=layout.staging)
    try:
        os.symlink(target, DIFF, dir_fd=directory)
        _write(directory, LINK, link_name(entry.name).encode("ascii"))
        if entry.lower:
            _write(directory, LOWER, entry.lower)
    finally:
        os.close(directory)


def _is(layout: Layout, entry: ChainEntry, target: str) -> bool:
    try:
        directory = os.open(checked_name(entry.name), DIRECTORY, dir_fd=layout.overlay)
    except FileNotFoundError:
        return False
    try:
        if not is_entry(layout, entry.name) or os.readlink(DIFF, dir_fd=directory) != os.fsencode(target):
            return False
        return (
            _read(directory, LINK) == link_name(entry.name).encode("ascii") and _read(directory, LOWER) == entry.lower
        )
    finally:
        os.close(directory)


def _read(directory: int, name: bytes) -> bytes:
    """Return the contents of a small file, b"" when there is none."""
    try:
        descriptor = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, _LONGEST_BYTES)
    finally:
        os.close(descriptor)


def _write(directory: int, name: bytes, data: bytes) -> None:
    descriptor = os.open(name, _WRITE, 0o600, dir_fd=directory)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)

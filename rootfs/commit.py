"""A finished layer enters the store, leaves it, and is found again after a restart.

Rule: content is on the disk before its name is. A layer is synced under its staging name and then renamed, so that
whatever stands in `overlay/` with a seal is whole, also after a power cut; removal is the reverse, one rename into the
trash. A write-back error is told once: it is fatal to the layer and never retried as good.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from rootfs import syscalls
from rootfs.beneath import DIRECTORY, open_beneath
from rootfs.chain import is_entry
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.failpoints import failpoint
from rootfs.layout import DIFF, IMPLIED, LINK, RECORD, SEAL, Layout, checked_name, drop_link, make_link, move_to_trash
from rootfs.overlay import link_name

SYNCS: Final = ("syncfs", "fsync", "off")
SEAL_BYTES: Final = 1 << 14
"""The longest seal that is read back; a longer one counts as none."""

ASIDE: Final = "damaged."
"""How the names of directories in `overlay/` begin that a whole layer has taken the place of."""

IMPLIED_BYTES: Final = 32 << 20
"""The longest list of implied directories."""

_WRITE_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHORT: Final = re.compile(r"[A-Z2-7]{26}(?:\.new)?")


@dataclass(frozen=True, slots=True)
class Found:
    """A directory that stands in `overlay/`; *seal* is None where the seal, the link file or the tree is missing."""

    name: str
    seal: bytes | None


def commit(
    layout: Layout,
    staging: str,
    *,
    name: str,
    seal: bytes,
    implied: bytes = b"",
    sync: str,
    filesystem: int,
    replace: bool = False,
) -> bool:
    """Make the layer under *staging* the layer *name*; False when that was there already, and staging is left.

    Args:
        layout: the store.
        staging: what is being made.
        name: the directory under `overlay/` that it becomes.
        seal: contents of `layer.json`.
        implied: contents of `implied`; without any there is no such file.
        sync: "syncfs" (one call for the whole file system), "fsync" (each file), "off".
        filesystem: descriptor on the store's file system, opened before the first write of this layer and used for
            nothing else: an error of any write-back since then fails the commit.
        replace: take the place of a layer that is there, which is damaged. Both change places in one step, so that
            there is one at every moment; the old one stays beside it (`ASIDE`) for whoever has it mounted.

    Raises:
        OSError: writing or syncing failed; what lies under *staging* must not be committed again.
        RootfsError: an unknown kind of sync, a seal that is too long, a name that cannot be.
    """
    if sync not in SYNCS:
        raise RootfsError(f"{sync[:20]!r} is no way to sync: {', '.join(SYNCS)}")
    if len(seal) > SEAL_BYTES:
        raise LimitExceeded(f"the seal of a layer has at most {SEAL_BYTES} bytes", "seal")
    if len(implied) > IMPLIED_BYTES:
        raise LimitExceeded(f"the implied directories of a layer take at most {IMPLIED_BYTES} bytes", "implied")
    staged = os.open(checked_name(staging), DIRECTORY, dir_fd=layout.staging)
    try:
        _write(staged, SEAL, seal)
        if implied:
            _write(staged, IMPLIED, implied)
        _write(staged, LINK, link_name(checked_name(name)).encode("ascii"))
        _drop_empty_record(staged)
        _sync(staged, sync, filesystem)
    finally:
        os.close(staged)
    return _publish(layout, staging, name, synced=sync != "off", replace=replace)


def _write(directory: int, name: bytes, data: bytes) -> None:
    descriptor = os.open(name, _WRITE_NEW, 0o600, dir_fd=directory)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _drop_empty_record(staged: int) -> None:
    """An unpacker that could not keep a record left its file empty."""
    try:
        size = os.stat(RECORD, dir_fd=staged, follow_symlinks=False).st_size
    except FileNotFoundError:
        return
    if not size:
        os.unlink(RECORD, dir_fd=staged)


def _sync(staged: int, sync: str, filesystem: int) -> None:
    if sync == "syncfs":
        failpoint("layer.syncfs")
        syscalls.syncfs(filesystem)
    elif sync == "fsync":
        sync_tree(staged)


def _publish(layout: Layout, staging: str, name: str, *, synced: bool, replace: bool) -> bool:
    """Give the layer its name, one at a time: who finds a name taken must not meet one that is being taken back.

    What another has put there may have been killed before its directories were synced, so they are in any case.
    """
    alone = os.open(".", DIRECTORY, dir_fd=layout.overlay)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX)
        fresh = _rename_new(layout, staging.encode("ascii"), name.encode("ascii"))
        if not fresh and replace:
            _exchange(layout, staging, name)
        try:
            make_link(layout, name)
            if synced:
                _sync_names(layout)
        except OSError:
            if fresh:
                _take_back(layout, name)
            raise
    finally:
        os.close(alone)
    failpoint("layer.committed")
    return fresh or replace


def _sync_names(layout: Layout) -> None:
    failpoint("layer.overlay.sync")
    os.fsync(layout.overlay)
    failpoint("layer.links.sync")
    os.fsync(layout.links)


def _take_back(layout: Layout, name: str) -> None:
    """A layer whose name may not be on the disk must not be found there by the next one, which would call it good."""
    with contextlib.suppress(OSError):
        move_to_trash(layout, layout.overlay, name)
        drop_link(layout, name)


def _rename_new(layout: Layout, staging: bytes, name: bytes) -> bool:
    """Rename without replacing, False when that was there already.

    Where the file system has no such call, a directory that is not empty stays anyway.
    """
    try:
        _rename(layout, staging, name)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _rename(layout: Layout, staging: bytes, name: bytes) -> None:
    try:
        failpoint("layer.rename")
        syscalls.renameat2(layout.staging, staging, layout.overlay, name, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        failpoint("layer.rename.plain")
        os.rename(staging, name, src_dir_fd=layout.staging, dst_dir_fd=layout.overlay)


def _exchange(layout: Layout, staging: str, name: str) -> None:
    """Put the new layer in the place of the old one.

    The new one leaves staging first: what lies there is unlinked at the next start, and the old one may be mounted.
    """
    aside = f"{ASIDE}{name[:64]}.{os.urandom(3).hex()}"
    failpoint("layer.aside.rename")
    os.rename(staging, aside, src_dir_fd=layout.staging, dst_dir_fd=layout.overlay)
    new, old = aside.encode("ascii"), name.encode("ascii")
    try:
        failpoint("layer.exchange")
        syscalls.renameat2(layout.overlay, new, layout.overlay, old, syscalls.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        failpoint("layer.exchange.old")
        os.rename(old, f"{aside[:-1]}-", src_dir_fd=layout.overlay, dst_dir_fd=layout.overlay)
        failpoint("layer.exchange.new")
        os.rename(new, old, src_dir_fd=layout.overlay, dst_dir_fd=layout.overlay)


def sync_tree(root: int) -> None:
    """Sync every file and directory beneath the directory *root*, then itself.

    Raises:
        OSError: one could not be written back.
    """
    left = [b""]
    while left:
        path = left.pop()
        directory = open_beneath(root, path)
        try:
            left.extend(path + b"/" + name if path else name for name in _sync_entries(directory))
            failpoint("layer.tree.sync")
            os.fsync(directory)
        finally:
            os.close(directory)


def _sync_entries(directory: int) -> list[bytes]:
    """Sync the files of one directory and return the names of the directories in it."""
    below = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                below.append(name)
            elif entry.is_file(follow_symlinks=False):
                descriptor = os.open(name, _READ, dir_fd=directory)
                try:
                    failpoint("layer.file.sync")
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
    return below


def trash(layout: Layout, names: tuple[str, ...]) -> None:
    """Take layers out of the store; a name that is not there is no error, one that cannot go stops nothing.

    Raises:
        OSError: the first layer that could not be renamed, after all others were.
    """
    failure: OSError | None = None
    for name in names:
        try:
            failpoint("layer.trash")
            move_to_trash(layout, layout.overlay, checked_name(name))
            drop_link(layout, name)
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def recover(layout: Layout) -> tuple[Found, ...]:
    """Put everything under staging into the trash, mend the short names, and say which layers stand there.

    Raises:
        OSError: the store cannot be read, or what stands there cannot be brought to the disk.
    """
    for name in os.listdir(layout.staging):
        move_to_trash(layout, layout.staging, name)
    found = found_in(layout)
    whole = [layer.name for layer in found if layer.seal is not None]
    _mend_links(layout, whole)
    # A layer that was killed just before it is adopted, and believed, from now on.
    failpoint("recover.overlay.sync")
    os.fsync(layout.overlay)
    failpoint("recover.links.sync")
    os.fsync(layout.links)
    failpoint("recover.mended")
    return found


def found_in(layout: Layout) -> tuple[Found, ...]:
    """Say which layers stand there; nothing is changed.

    Entries of a chain that are no layers are their publisher's, and are left alone.
    """
    names = [name for name in sorted(os.listdir(layout.overlay)) if name != "l" and not is_entry(layout, name)]
    return tuple(_found(layout, name) for name in names)


def _found(layout: Layout, name: str) -> Found:
    """Read the seal of one layer; anything that is not as `commit` left it counts as not sealed."""
    try:
        directory = os.open(checked_name(name), DIRECTORY, dir_fd=layout.overlay)
    except (OSError, RootfsError):
        return Found(name, None)
    try:
        whole = _read(directory, LINK, 64) == link_name(name).encode("ascii")
        whole = whole and stat.S_ISDIR(os.stat(DIFF, dir_fd=directory, follow_symlinks=False).st_mode)
        return Found(name, _read(directory, SEAL, SEAL_BYTES) if whole else None)
    except (OSError, RootfsError):
        return Found(name, None)
    finally:
        os.close(directory)


def _read(directory: int, name: bytes, limit_bytes: int) -> bytes:
    descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= limit_bytes:
            raise RootfsError("not a file that a commit wrote")
        return os.pread(descriptor, status.st_size, 0)
    finally:
        os.close(descriptor)


def _mend_links(layout: Layout, names: list[str]) -> None:
    """Make the short names that are missing and remove those that lead nowhere; others may be a publisher's."""
    for name in names:
        make_link(layout, name)
    for short in os.listdir(layout.links):
        try:
            os.stat(short, dir_fd=layout.links)
        except FileNotFoundError:
            if _SHORT.fullmatch(short):
                os.unlink(short, dir_fd=layout.links)

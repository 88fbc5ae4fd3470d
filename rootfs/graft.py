"""A layer given to a runtime: its tree a second time, in a directory of the runtime's own, sharing every file.

Rule: nothing outside the runtime's root is ever written. The root is the one that the helper was started with; a job
names only a path below it, which is resolved beneath a descriptor of the root, without links. The directory must be
empty: a runtime's snapshot that somebody has written into is not ours to fill.

Whether files can be shared is the node's business: link(2) needs one file system and one mount, FICLONE (ioctl_ficlone)
one file system that knows it; otherwise `rootfs.duplicate` copies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs import syscalls
from rootfs.beneath import open_beneath
from rootfs.commit import SYNCS, sync_tree
from rootfs.duplicate import FICLONE
from rootfs.errors import RootfsError, shown
from rootfs.failpoints import failpoint
from rootfs.forms import FormMade, make_form

if TYPE_CHECKING:
    from rootfs.layout import Layout

WAYS: Final = ("link", "reflink", "copy")
"""How files come into a runtime's directories, best first."""

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Reach:
    """How files would come into a runtime's root: one of `WAYS`, "" where the root is not there, and why not better."""

    way: str
    why: str


def open_runtime(path: str) -> int:
    """Open the root of the runtime, which the operator named.

    Raises:
        RootfsError: none was named, or it is no absolute path.
        OSError: it is not there.
    """
    if not path.startswith("/"):
        raise RootfsError("the helper was started without the root of a runtime")
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def graft(source: int, runtime: int, path: bytes, *, sync: str) -> FormMade:
    """Fill the empty directory *path* below *runtime* with the tree *source*, metadata of the root included.

    Args:
        source: descriptor of a committed layer's tree.
        runtime: descriptor of the runtime's root.
        path: of the directory, relative to that root.
        sync: "syncfs", "fsync" or "off", as for `commit`.

    Raises:
        OSError: reading, writing or syncing failed; what was made is the runtime's to remove.
        RootfsError: the path leaves the root or is no empty directory, or *sync* is unknown.
    """
    if sync not in SYNCS:
        raise RootfsError(f"{sync[:20]!r} is no way to sync: {', '.join(SYNCS)}")
    target = _open_target(runtime, path)
    try:
        with os.scandir(target) as entries:
            if next(entries, None) is not None:
                raise RootfsError(f"the runtime's directory {shown(path)} is not empty")
        made = make_form(source, target)
        if sync == "syncfs":
            failpoint("graft.syncfs")
            syscalls.syncfs(target)
        elif sync == "fsync":
            sync_tree(target)
    finally:
        os.close(target)
    return made


def _open_target(runtime: int, path: bytes) -> int:
    if not path or path.startswith(b"/"):
        raise RootfsError(f"{shown(path)} is no path below the runtime's root")
    try:
        return open_beneath(runtime, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR):
            raise
        raise RootfsError(f"{shown(path)} does not lead to a directory of the runtime ({error.strerror})") from None


def reach(layout: Layout, path: str) -> Reach:
    """Find out, with a file of one byte that is gone afterwards, how files come from the store into the root *path*.

    Raises:
        OSError: the store or the root cannot be written.
        RootfsError: no root was named.
    """
    try:
        runtime = open_runtime(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        return Reach("", f"{path}: {error.strerror}")
    name = f".cri-shim-{os.urandom(8).hex()}"
    try:
        return _tried(layout.staging, runtime, name)
    finally:
        for directory in (layout.staging, runtime):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
        os.close(runtime)


def _tried(staging: int, runtime: int, name: str) -> Reach:
    own = os.open(name, _NEW, 0o600, dir_fd=staging)
    try:
        os.write(own, b"x")
        try:
            os.link(name, name, src_dir_fd=staging, dst_dir_fd=runtime, follow_symlinks=False)
        except OSError as error:
            return _cloned(own, runtime, name, f"link: {error.strerror}")
        return Reach("link", "")
    finally:
        os.close(own)


def _cloned(own: int, runtime: int, name: str, why: str) -> Reach:
    other = os.open(name, _NEW, 0o600, dir_fd=runtime)
    try:
        fcntl.ioctl(other, FICLONE, own)
    except OSError as error:
        return Reach("copy", f"{why}; clone: {error.strerror}")
    finally:
        os.close(other)
    return Reach("reflink", why)

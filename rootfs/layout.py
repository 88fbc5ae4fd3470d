"""Where layers lie on the disk: the directories of a store that the helper works in.

    <root>/overlay/<name>/{diff/, layer.json, link, tar-split.gz}    a layer, whole and synced
    <root>/overlay/l/<26 letters> -> ../<name>/diff    its short name for mounts
    <root>/staging/<name>/...                          a layer that is being made; void after a restart
    <root>/trash/<name>.<random>                       what was removed, and is not unlinked yet

Rule: a directory enters `overlay/` and leaves it by one rename; everything is relative to descriptors.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from rootfs.errors import RootfsError
from rootfs.failpoints import failpoint
from rootfs.overlay import link_name

DIFF: Final = b"diff"
SEAL: Final = b"layer.json"
LINK: Final = b"link"
IMPLIED: Final = b"implied"
RECORD: Final = b"tar-split.gz"

_NAME: Final = re.compile(r"[0-9a-z._-]{1,80}")
_LINKS: Final = "l"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def checked_name(name: str) -> str:
    """Return *name* if it can be a directory of a layer: 1 to 80 of `[0-9a-z._-]`, not dots alone, not "l".

    Raises:
        RootfsError: it cannot.
    """
    if not _NAME.fullmatch(name) or not name.strip(".") or name == _LINKS:
        raise RootfsError(f"{name[:100]!r} cannot be the name of a layer's directory")
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    """Descriptors of the directories of one store; they stay open as long as the process."""

    path: str
    root: int
    overlay: int
    links: int
    staging: int
    trash: int


def open_layout(path: str) -> Layout:
    """Open the store at the absolute *path*; what is missing is made, mode 0700.

    Raises:
        OSError: the store cannot be made or opened.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    root = os.open(path, _DIRECTORY)
    overlay = _directory(root, "overlay")
    return Layout(
        path=path,
        root=root,
        overlay=overlay,
        links=_directory(overlay, _LINKS),
        staging=_directory(root, "staging"),
        trash=_directory(root, "trash"),
    )


def must_be_one_mount(layout: Layout) -> None:
    """Refuse a store over which a layer could not be renamed from one place to another.

    Raises:
        RootfsError: something is mounted on a directory below the root.
        OSError: /proc cannot be read.
    """
    places = {"overlay": layout.overlay, "overlay/l": layout.links, "staging": layout.staging, "trash": layout.trash}
    for name, directory in places.items():
        if _mount_of(directory) != _mount_of(layout.root):
            raise RootfsError(
                f"{layout.path}/{name} is a mount of its own, and layers are renamed in and out of it: unmount it, "
                "and mount a larger filesystem at the root itself if that was what it was for"
            )


def _mount_of(descriptor: int) -> str:
    """The id of the mount that a descriptor was opened on, as proc_pid_fdinfo(5) tells it; a bind mount has its own."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next((line for line in file if line.startswith("mnt_id:")), "")


def _directory(parent: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)


def open_diff(layout: Layout, name: str) -> int:
    """Open the tree of the layer *name*.

    Raises:
        FileNotFoundError: there is no such layer.
    """
    return _nested(layout.overlay, name)


def open_layer(layout: Layout, name: str) -> tuple[int, int]:
    """Open the tree of the layer *name*, and the record of its tar; -1 for a record that is no file, or not there.

    Raises:
        FileNotFoundError: there is no such layer.
    """
    tree = open_diff(layout, name)
    try:
        outer = os.open(checked_name(name), _DIRECTORY | os.O_NOFOLLOW, dir_fd=layout.overlay)
    except BaseException:
        os.close(tree)
        raise
    try:
        record = os.open(RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=outer)
    except OSError:
        return tree, -1
    finally:
        os.close(outer)
    if not stat.S_ISREG(os.fstat(record).st_mode):
        os.close(record)
        return tree, -1
    return tree, record


def open_staged_diff(layout: Layout, staging: str) -> int:
    """Open the tree of the layer that is being made under *staging*."""
    return _nested(layout.staging, staging)


def _nested(parent: int, name: str) -> int:
    flags = _DIRECTORY | os.O_NOFOLLOW
    outer = os.open(checked_name(name), flags, dir_fd=parent)
    try:
        return os.open(DIFF, flags, dir_fd=outer)
    finally:
        os.close(outer)


def make_staged_diff(layout: Layout, staging: str) -> int:
    """Make the directories of a new layer under *staging* and open its tree, mode 0755.

    Raises:
        FileExistsError: something is being made under that name.
    """
    os.mkdir(checked_name(staging), 0o700, dir_fd=layout.staging)
    outer = os.open(staging, _DIRECTORY | os.O_NOFOLLOW, dir_fd=layout.staging)
    try:
        os.mkdir(DIFF, 0o700, dir_fd=outer)
        tree = os.open(DIFF, _DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    finally:
        os.close(outer)
    os.fchmod(tree, 0o755)
    failpoint("staging.made")
    return tree


def make_record(layout: Layout, staging: str) -> int:
    """Make the file for the record of the tar beside the tree of a new layer and open it for writing.

    Raises:
        OSError: it cannot be made, or is there already.
    """
    outer = os.open(checked_name(staging), _DIRECTORY | os.O_NOFOLLOW, dir_fd=layout.staging)
    try:
        return os.open(RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=outer)
    finally:
        os.close(outer)


def move_to_trash(layout: Layout, parent: int, name: str) -> bool:
    """Rename the entry *name* of the directory *parent* into the trash; False when there is none."""
    try:
        failpoint("trash.rename")
        os.rename(name, f"{name[:40]}.{os.urandom(8).hex()}", src_dir_fd=parent, dst_dir_fd=layout.trash)
    except FileNotFoundError:
        return False
    return True


def make_link(layout: Layout, name: str, layer: str = "") -> None:
    """Make the short name of *name*, whether or not something stands there; it leads to *layer*, else to *name*."""
    short, target = link_name(name), f"../{layer or name}/diff"
    try:
        if os.readlink(short, dir_fd=layout.links) == target:
            return
    except OSError:
        pass  # Missing, or not a link: the rename below settles it.
    new = f"{short}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=layout.links)
    os.symlink(target, new, dir_fd=layout.links)
    failpoint("layer.link.rename")
    os.rename(new, short, src_dir_fd=layout.links, dst_dir_fd=layout.links)


def drop_link(layout: Layout, name: str) -> None:
    """Remove the short name of the layer *name*, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link_name(name), dir_fd=layout.links)

"""The layers of an image mounted as one tree, on a directory of the caller's.

Lower directories are named relative to the store (`l/<letters>`), so that an image of the most layers fits into the
one page of options that mount(2) takes, wherever the store lies. For that the process changes its working directory:
this is for programs that mount and end, not for a daemon.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs import syscalls
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.overlay import OPTION_BYTES, escaped, link_name

if TYPE_CHECKING:
    from collections.abc import Sequence

MS_REMOUNT: Final = 0x20
_TO_LOOK_AT: Final = syscalls.MS_RDONLY | 0x2 | 0x4  # MS_NOSUID, MS_NODEV: nobody is to run anything there


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers of one store: its root, and the names of their directories, bottom first.

    *user_attributes* says that they are marked with `user.overlay.*`, as an unprivileged store marks them.
    """

    root: str
    names: Sequence[str]
    user_attributes: bool = False

    def links(self) -> list[str]:
        """Return the short names, uppermost first, relative to `overlay/`."""
        return [f"l/{link_name(name)}" for name in reversed(self.names)]


def mount_read_only(layers: Layers, target: str) -> None:
    """Mount *layers* on the directory *target*, read-only; one layer alone needs no overlay and is bind-mounted.

    Raises:
        LimitExceeded: there are too many layers for one mount.
        OSError, RootfsError: they cannot be mounted; nothing is.
    """
    _enter(layers)
    where = os.fsencode(target)
    if len(layers.names) > 1:
        _overlay(layers, where, [], _TO_LOOK_AT)
        return
    syscalls.mount(os.fsencode(layers.links()[0]), where, None, syscalls.MS_BIND)
    try:
        syscalls.mount(None, where, None, syscalls.MS_BIND | MS_REMOUNT | _TO_LOOK_AT)
    except OSError:
        unmount(target)
        raise
    _check(layers, target)


def mount_writable(layers: Layers, target: str, upper: str, work: str) -> None:
    """Mount *layers* on the directory *target*; what is written goes to *upper*. *work* is empty and beside it.

    *upper* gets the mode and the owner of the tree's root: overlayfs takes those of the merged root from it.

    Raises:
        LimitExceeded, OSError, RootfsError: as `mount_read_only`.
    """
    _enter(layers)
    root = os.stat(layers.links()[0])
    os.chown(upper, root.st_uid, root.st_gid)
    os.chmod(upper, stat.S_IMODE(root.st_mode))
    _overlay(layers, os.fsencode(target), [f"upperdir={escaped(upper)}", f"workdir={escaped(work)}"], 0)


def unmount(target: str) -> None:
    """Unmount what is mounted on *target*.

    Raises:
        OSError: it is in use, or nothing is mounted there.
    """
    syscalls.umount2(os.fsencode(target), 0)


def _enter(layers: Layers) -> None:
    if not layers.names:
        raise RootfsError("the image has no layers, so there is nothing to mount")
    os.chdir(os.path.join(layers.root, "overlay"))


def _overlay(layers: Layers, target: bytes, more: list[str], flags: int) -> None:
    marks = ["userxattr"] if layers.user_attributes else []
    options = os.fsencode(",".join(["lowerdir=" + ":".join(layers.links()), *more, *marks]))
    if len(options) > OPTION_BYTES:
        raise LimitExceeded(f"{len(layers.names)} layers do not fit into the {OPTION_BYTES} bytes of a mount's options")
    syscalls.mount(b"overlay", target, b"overlay", flags, options)
    _check(layers, os.fsdecode(target))


def _check(layers: Layers, target: str) -> None:
    """Look whether the layers are still there: one that was thrown away meanwhile is empty in the mount."""
    if not all(os.path.isdir(link) for link in layers.links()):
        unmount(target)
        raise RootfsError("the image was removed while it was mounted")

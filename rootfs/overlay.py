"""The overlay form of layers: how one is marked, how it is named for a mount, how many are mounted as one.

A whiteout is a character device 0:0, an opaque directory carries an attribute (Documentation/filesystems/overlayfs.rst
of Linux). The names under `overlay/l/` follow the containers-storage overlay driver: 26 letters for each layer, so that
many layers fit into the one page that mount(2) gives to options.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.errors import LimitExceeded, RootfsError

if TYPE_CHECKING:
    from collections.abc import Sequence

OPAQUE_TRUSTED: Final = b"trusted.overlay.opaque"
"""Marks an opaque directory; only a privileged process may set it."""
OPAQUE_USER: Final = b"user.overlay.opaque"
"""Marks an opaque directory for mounts with `userxattr`."""
PRIVATE_PREFIXES: Final = (b"trusted.overlay.", b"user.overlay.")
"""Attributes that belong to overlayfs, and never to a layer's content."""

LINK_LETTERS: Final = 26
OPTION_BYTES: Final = 4095
"""What mount(2) takes as options: a page, less the closing NUL."""


def link_name(name: str) -> str:
    """Return the short name of the layer directory *name*: 26 letters of A-Z2-7, always the same."""
    return base64.b32encode(hashlib.sha256(name.encode("ascii")).digest()).decode("ascii")[:LINK_LETTERS]


def is_whiteout(status: os.stat_result) -> bool:
    """Say whether an entry hides what lies below it."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def lower_option(root: str, names: Sequence[str]) -> str:
    """Return the `lowerdir=` option that mounts the layer directories *names*, bottom first, as one tree.

    overlayfs takes the uppermost first, and no directory twice; one layer alone needs no overlay and is bind-mounted.

    Args:
        root: the store's root directory, absolute.
        names: directories under `overlay/`, in the order of the image.

    Raises:
        LimitExceeded: the option does not fit into a page.
        RootfsError: a layer twice, fewer than two layers, a root that cannot be written as an option.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise RootfsError("an overlay takes two layers or more, and each of them once")
    links = escaped(os.path.join(root, "overlay", "l"))
    option = "lowerdir=" + ":".join(f"{links}/{link_name(name)}" for name in reversed(names))
    if len(os.fsencode(option)) > OPTION_BYTES:
        raise LimitExceeded(
            f"{len(names)} layers under {root} do not fit into the {OPTION_BYTES} bytes of a mount's options; "
            "a shorter root takes more"
        )
    return option


def escaped(path: str) -> str:
    r"""Write *path* as a part of an overlay option: `\`, `:` and `,` stand behind a backslash.

    Raises:
        RootfsError: it is not absolute, or not one line.
    """
    if not path.startswith("/") or "\n" in path or "\0" in path:
        raise RootfsError("the root of the store must be an absolute path of one line")
    return "".join("\\" + letter if letter in "\\:," else letter for letter in path)


def mount_options(root: str, names: Sequence[str], *, user_attributes: bool = False) -> str:
    """Return all options of a read-only overlay of *names*, bottom first.

    *user_attributes* says that the layers are marked with `user.overlay.*`, as an unprivileged store marks them.

    Raises:
        LimitExceeded: the options do not fit into a page.
        RootfsError: as `lower_option`.
    """
    options = ("ro", lower_option(root, names), *(("userxattr",) if user_attributes else ()))
    return ",".join(options)

"""Whiteouts: names in a layer that hide what lower layers have (OCI image-spec, layer.md, "Whiteouts"). Pure."""

from __future__ import annotations

import enum
from typing import Final

from rootfs.errors import LayerRejected, shown

PREFIX: Final = b".wh."
"""A name without this anywhere has nothing to do with whiteouts."""

_AUFS: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"


class Mark(enum.Enum):
    """What an entry's name makes of it."""

    NONE = enum.auto()
    HIDE = enum.auto()
    OPAQUE = enum.auto()
    AUFS = enum.auto()


def mark_of(parent: bytes, base: bytes) -> tuple[Mark, bytes]:
    """Tell what the entry *base* in the directory *parent* stands for.

    Returns:
        HIDE and the name that is hidden; OPAQUE for the mark of the directory *parent* itself; AUFS for that
        filesystem's own bookkeeping, which old layers contain and which means nothing; NONE for everything else.

    Raises:
        LayerRejected: a whiteout that hides no name, or is used as a directory.
    """
    for part in parent.split(b"/") if PREFIX in parent else ():
        if part.startswith(_AUFS):
            return Mark.AUFS, b""
        if part.startswith(PREFIX):
            raise LayerRejected(f"the whiteout {shown(part)} is used as a directory")
    if base == _OPAQUE:
        return Mark.OPAQUE, b""
    if base.startswith(_AUFS):
        return Mark.AUFS, b""
    if not base.startswith(PREFIX):
        return Mark.NONE, b""
    hidden = base[len(PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise LayerRejected(f"the whiteout {shown(base)} hides no name")
    return Mark.HIDE, hidden

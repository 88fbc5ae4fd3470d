"""Layers that stand unpacked in another store of this node: where, and what came of sharing their files.

An import has every layer proved by the unpacker, out of its blob. What stands there only spares the disk: equal files
lie once afterwards (`rootfs.share`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rootfs.digest import Digest

if TYPE_CHECKING:
    from cri_shim.oci.manifest import Layer
    from rootfs.client import Helper
    from rootfs.share import Shared

_log = logging.getLogger(__name__)
_TREE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NONE: Final = -1


@dataclass(frozen=True, slots=True)
class Tree:
    """A layer in another store: its directory."""

    directory: str


Find = Callable[[tuple[Digest, ...]], Awaitable[Mapping[Digest, Tree]]]
"""Tells where the layers of an image, given by their diff IDs, bottom first, stand. Those that do not are left out."""


@dataclass(slots=True)
class Tally:
    """What of imported layers lies once, and what does not; files with content only."""

    files: int = 0
    shared_bytes: int = 0
    own_files: int = 0
    own_bytes: int = 0
    ways: dict[str, str] = field(default_factory=dict)

    def add(self, shared: Shared) -> None:
        """Count a layer."""
        self.files += shared.files
        self.shared_bytes += shared.shared_bytes
        self.own_files += shared.own_files
        self.own_bytes += shared.own_bytes
        self.ways.setdefault(shared.way, shared.why)

    def as_json(self) -> dict[str, object]:
        """Return it for the admin socket: `ways` has "link", "reflink" or "copy", each with why not better."""
        return {
            "files": self.files,
            "shared_bytes": self.shared_bytes,
            "own_files": self.own_files,
            "own_bytes": self.own_bytes,
            "ways": self.ways,
        }


class Standing:
    """The layers of one image that stand elsewhere. *tally* is told what was shared with them."""

    def __init__(self, helper: Helper, find: Find, tally: Tally) -> None:
        self._helper = helper
        self._find = find
        self._trees: Mapping[Digest, Tree] = {}
        self.tally = tally

    async def expect(self, layers: tuple[Layer, ...]) -> None:
        """Look where *layers*, those of the image, stand."""
        self._trees = await self._find(tuple(layer.diff_id for layer in layers))

    def open_tree(self, diff_id: Digest) -> int:
        """Open the directory where a layer stands, O_PATH; -1 where there is none, or none any more. For a thread."""
        try:
            return os.open(self._trees[diff_id].directory, _TREE) if diff_id in self._trees else _NONE
        except OSError as error:  # it was removed meanwhile, as it may be: what was unpacked is whole
            _log.info("layer %s shares no files: %s: %s", diff_id, error.filename, error.strerror)
            return _NONE

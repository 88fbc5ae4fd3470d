"""Layers that stand unpacked in another store of this node: where, and what came of sharing their files.

An import has every layer proved by the unpacker, out of its blob or out of the tar that is put together again from the
other store's files. What stands there only spares the disk: equal files lie once afterwards (`rootfs.share`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cri_shim.errors import Cancelled, ContentRejected
from cri_shim.oci import media
from cri_shim.oci.descriptor import Descriptor
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from cri_shim.oci.manifest import Layer
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.segments import Sink
    from rootfs.client import Helper
    from rootfs.share import Shared

_log = logging.getLogger(__name__)
_PIECE_BYTES: Final = 1 << 18
_TREE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NONE: Final = -1
_RECORD: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Tree:
    """A layer in another store: its directory; where its tar is to be made of that, the record and the tar's length."""

    directory: str
    record: str = ""
    size_bytes: int = 0


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

    async def expect(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Look where *layers* stand; those that are to be made of their files have the tar for a blob."""
        self._trees = await self._find(tuple(layer.diff_id for layer in layers))
        return tuple(self._plain(layer) for layer in layers)

    def _plain(self, layer: Layer) -> Layer:
        tree = self._trees.get(layer.diff_id)
        if tree is None or not tree.record:
            return layer
        return replace(layer, descriptor=Descriptor(media.OCI_LAYER, layer.diff_id, tree.size_bytes))

    def open_tree(self, diff_id: Digest) -> int:
        """Open the directory where a layer stands, O_PATH; -1 where there is none, or none any more. For a thread."""
        try:
            return os.open(self._trees[diff_id].directory, _TREE) if diff_id in self._trees else _NONE
        except OSError as error:  # it was removed meanwhile, as it may be: what was unpacked is whole
            _log.info("layer %s shares no files: %s: %s", diff_id, error.filename, error.strerror)
            return _NONE

    def makes(self, blob: Digest) -> bool:
        """Tell whether *blob* is a tar that is made of files."""
        tree = self._trees.get(blob)
        return tree is not None and bool(tree.record)

    def make(self, blob: Digest, sink: Sink, cancel: Cancel) -> int:
        """Put the tar *blob* together, and into *sink*; return its length. For a thread.

        Raises:
            ContentRejected: the other store's files are not what was unpacked there, or are gone.
            Cancelled: nobody wants it any more.
        """
        tree = self._trees[blob]
        with ExitStack() as opened:
            try:
                record = _opened(opened, tree.record, _RECORD)
                root = _opened(opened, tree.directory, _TREE)
            except OSError as error:
                raise ContentRejected(f"{error.filename} cannot be read: {error.strerror}; was it removed?") from error
            reading, writing = os.pipe2(os.O_CLOEXEC)
            opened.callback(os.close, reading)
            try:
                job = self._helper.assemble(record, root, writing)
            finally:
                os.close(writing)
            opened.callback(job.cancel)
            _drain(reading, sink, cancel)
            try:
                return job.future.result()
            except RootfsError as error:
                raise ContentRejected(f"it cannot be proved from {tree.directory}: {error}") from error


def _opened(stack: ExitStack, path: str, flags: int) -> int:
    descriptor = os.open(path, flags)
    stack.callback(os.close, descriptor)
    return descriptor


def _drain(reading: int, sink: Sink, cancel: Cancel) -> None:
    while piece := os.read(reading, _PIECE_BYTES):
        if cancel.cancelled:
            raise Cancelled("the import was given up")
        sink.append(piece)

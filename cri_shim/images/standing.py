"""Layers that stand unpacked in another store of this node: where, and what came of sharing their files.

An import has every layer proved by the unpacker, out of its blob. What stands there only spares the disk: equal files
lie once afterwards (`rootfs.share`).

A store that has kept no blob (containers-storage) has the record of each layer's tar instead. The tar is made again of
record and files (`rootfs.assemble`) and takes the blob's place: its digest is the diff ID, so that the unpacker proves
it like any other, and it is all that is ever proved of such a layer.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.errors import Cancelled, ContentRejected, NotFound
from cri_shim.oci import media
from cri_shim.oci.manifest import Descriptor, Layer
from rootfs.digest import Digest

if TYPE_CHECKING:
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.segments import Sink
    from rootfs.client import Helper, Job
    from rootfs.share import Shared

_log = logging.getLogger(__name__)
_TREE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_RECORD: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NONE: Final = -1
_PIECE_BYTES: Final = 1 << 20
_OF_LAYER: Final = "the tar that was made again of the layer"


@dataclass(frozen=True, slots=True)
class Tree:
    """A layer in another store: its directory, and where no blob is, the record of its tar and that tar's size."""

    directory: str
    record: str = ""
    tar_bytes: int = 0


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
        """Look where *layers*, those of the image, stand; one whose tar is made again is its own blob."""
        self._trees = await self._find(tuple(layer.diff_id for layer in layers))
        return tuple(map(self._as_it_comes, layers))

    def has_tar(self, digest: Digest) -> bool:
        """Tell whether the blob *digest* is a tar that can be made again."""
        tree = self._trees.get(digest)
        return tree is not None and bool(tree.record)

    def assemble(self, diff_id: Digest, sink: Sink, cancel: Cancel) -> None:
        """Make the tar of a layer again, into *sink*. For a thread.

        Raises:
            NotFound: what it is made of is gone, or may not be read.
            ContentRejected: it is not as long as it should be.
            RootfsError: a file is not the one that was unpacked, or the record is damaged.
            Cancelled: the caller is gone.
        """
        tree = self._trees[diff_id]
        job, pipe = self._begun(tree)
        try:
            size_bytes = _pumped(pipe, tree.tar_bytes, sink, cancel)
        except BaseException:
            job.cancel()
            raise
        finally:
            os.close(pipe)
        job.future.result()
        if size_bytes != tree.tar_bytes:
            raise ContentRejected(f"{_OF_LAYER} {diff_id} has {size_bytes} bytes, not {tree.tar_bytes}")

    def _as_it_comes(self, layer: Layer) -> Layer:
        tree = self._trees.get(layer.diff_id)
        if tree is None or not tree.record:
            return layer
        return Layer(Descriptor(media.OCI_LAYER, layer.diff_id, tree.tar_bytes), layer.diff_id)

    def _begun(self, tree: Tree) -> tuple[Job[int], int]:
        """Have the helper write the tar into a pipe; return its reading end, which is the caller's."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a user may have used up what pipes may have together
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIECE_BYTES)
            with _opened(tree.record, _RECORD) as record, _opened(tree.directory, _TREE) as directory:
                return self._helper.assemble(record, directory, writing), reading
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)

    def open_tree(self, diff_id: Digest) -> int:
        """Open the directory where a layer stands, O_PATH; -1 where there is none, or none any more. For a thread."""
        try:
            return os.open(self._trees[diff_id].directory, _TREE) if diff_id in self._trees else _NONE
        except OSError as error:  # it was removed meanwhile, as it may be: what was unpacked is whole
            _log.info("layer %s shares no files: %s: %s", diff_id, error.filename, error.strerror)
            return _NONE


def _pumped(pipe: int, limit_bytes: int, sink: Sink, cancel: Cancel) -> int:
    """Put what comes out of *pipe* into *sink* and return how much it was."""
    size_bytes = 0
    while piece := os.read(pipe, _PIECE_BYTES):
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise ContentRejected(f"{_OF_LAYER} has more than its {limit_bytes} bytes")
        if cancel.cancelled:
            raise Cancelled("the import was given up")
        sink.append(piece)
    return size_bytes


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)

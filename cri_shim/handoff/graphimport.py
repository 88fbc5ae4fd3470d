"""Images that CRI-O or podman has pulled itself, taken out of its graph root (`graphroot`): no registry is asked.

containers-storage keeps no blob of a layer: its tar is made again of the files and the record beside them, and takes
the place of the blob that the manifest names (`images.standing`). What is told of the image stays what it was: its id
is the digest of its config, its names by digest are those of the documents that it was pulled as, and the manifest
that is kept is the one that is there. Nobody has seen that a blob named in it unpacks to a layer, so nothing but the
tar is proved: a pull by another name fetches the blobs.

The store is left as it is; files of equal content lie once afterwards. To free what is not shared, images are removed
there by their own tools.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import InvalidRequest, NotFound, ShimError
from cri_shim.handoff.graphroot import read_graph_root
from cri_shim.images.importing import Adopted, Taken
from cri_shim.images.network import in_thread
from cri_shim.images.offers import chosen
from cri_shim.images.standing import Tally
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from cri_shim.handoff.graphroot import GraphImage, GraphRoot
    from cri_shim.images.importing import Importer
    from cri_shim.images.standing import Tree
    from cri_shim.oci.reference import Reference
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store
    from rootfs.digest import Digest

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _There:
    """An image and the graph root that has it."""

    graph: GraphRoot
    image: GraphImage

    @property
    def names(self) -> tuple[Reference, ...]:
        return self.image.names

    @property
    def tag(self) -> str:
        return self.image.id


class GraphImport:
    """Brings images of graph roots here; *roots* are those that nobody need name, *thread* is where they are read."""

    def __init__(self, store: Store, importer: Importer, roots: tuple[Path, ...], thread: Executor) -> None:
        self._own = store.layout.root
        self._importer = importer
        self._roots = roots
        self._thread = thread

    async def run(self, root: str = "", name: str = "", tag: str = "") -> Taken:
        """Import the images of the graph root *root*, "" for all that are configured and there.

        Args:
            root: absolute path.
            name: the name that the one image is to have, "" for those that it has there.
            tag: which image is meant, by a name or its id; "" for all that have a name.

        Raises:
            InvalidRequest: there is no such root, or no such image; or it cannot be read.
            HandOffFailed: another program does not let go of it.
        """
        tally = Tally()
        graphs = [await self._in_thread(partial(self._read, path)) for path in await self._wanted(root)]
        there = tuple(_There(graph, image) for graph in graphs for image in graph.images)
        if not there and not tag:
            return Taken((), tally)
        taken = [await self._take(one, reference, tally) for reference, one in chosen(there, name, tag)]
        _log.info("imported %d of %d images of containers-storage", sum(not one.failure for one in taken), len(taken))
        return Taken(tuple(taken), tally)

    async def adopt(self) -> Taken:
        """Import everything from the configured graph roots; a node without any has nothing to take over.

        Raises:
            InvalidRequest, HandOffFailed: as `run`.
        """
        return await self.run() if await self._in_thread(self._present) else Taken((), Tally())

    def _present(self) -> tuple[Path, ...]:
        """Return the configured roots that are graph roots, of whatever driver."""
        return tuple(path for path in self._roots if next(path.glob("*-images"), None) is not None)

    async def _wanted(self, root: str) -> tuple[Path, ...]:
        if root:
            return (Path(root),)
        there = await self._in_thread(self._present)
        if not there:
            raise InvalidRequest(
                f"no containers_storage_roots is there ({', '.join(map(str, self._roots))}): give the graph root after "
                "containers-storage:"
            )
        return there

    def _read(self, path: Path) -> GraphRoot:
        if path.is_dir() and os.path.samefile(path, self._own):
            raise InvalidRequest(f"{path} is our own root: its images are here")
        return read_graph_root(path)

    async def _take(self, there: _There, reference: Reference, tally: Tally) -> Adopted:
        try:
            return Adopted(str(reference), await self._taken(there.graph, there.image, reference, tally))
        except (ShimError, RootfsError) as error:
            _log.warning("%s is not imported from %s: %s", reference, there.graph.path, error)
            return Adopted(str(reference), None, str(error))

    async def _taken(self, graph: GraphRoot, image: GraphImage, reference: Reference, tally: Tally) -> Image:
        async def find(diff_ids: tuple[Digest, ...]) -> Mapping[Digest, Tree]:
            return await self._in_thread(lambda: graph.trees(image, diff_ids))

        *better, last = await self._in_thread(lambda: graph.offers(image, reference))
        for offer in better:
            try:
                return await self._importer.take(
                    lambda: graph.documents(image), reference, offer, str(graph.path), find, tally
                )
            except NotFound as error:  # an index, of which another platform was pulled
                _log.info("%s is no %s: %s", reference, offer.target, error)
        return await self._importer.take(lambda: graph.documents(image), reference, last, str(graph.path), find, tally)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(self._thread, lambda _: work())

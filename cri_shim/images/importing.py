"""`import`: images out of an archive or a directory, by the same way as out of a registry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.images.archive import open_files
from cri_shim.images.carried import ORIGIN, Carried
from cri_shim.images.network import in_thread
from cri_shim.images.offers import chosen, offers_of
from cri_shim.images.pull import Puller
from cri_shim.images.shortname import plainly
from cri_shim.images.standing import Standing, Tally

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.images.archive import Files
    from cri_shim.images.forms import Forms
    from cri_shim.images.layers import Layers
    from cri_shim.images.network import Threads
    from cri_shim.images.offers import Offer
    from cri_shim.images.pull import Publish, Settings
    from cri_shim.images.standing import Find
    from cri_shim.oci.reference import Reference
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store


@dataclass(frozen=True, slots=True)
class Adopted:
    """What became of one name that a runtime has: its image, or why it stays with the runtime alone."""

    name: str
    image: Image | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the images of another store, name by name, and of the files of their layers."""

    images: tuple[Adopted, ...]
    tally: Tally


@dataclass(frozen=True, slots=True)
class Intake:
    """The ways in beside pulls: archives, and what others on this node have pulled.

    *adopt* takes over what the runtime has pulled itself, where it can be asked for that; *containerd* the same of
    containerd alone. *storage* takes images out of a graph root of containers-storage, "" for the configured ones, by
    name and tag as `offers.chosen` has them.
    """

    importer: Importer
    adopt: Callable[[], Awaitable[Taken]] | None = None
    containerd: Callable[[], Awaitable[Taken]] | None = None
    storage: Callable[[str, str, str], Awaitable[Taken]] | None = None


class Importer:
    """Brings images of archives into *store*, beside the pulls that go on."""

    def __init__(
        self, store: Store, threads: Threads, layers: Layers, forms: Forms, publish: Publish, settings: Settings
    ) -> None:
        self._store = store
        self._threads = threads
        self._layers = layers
        self._forms = forms
        self._publish = publish
        # Nobody's credential is involved, and none is told that it opened anything.
        self._settings = replace(
            settings,
            authorise=lambda _reference, _given: (ANONYMOUS,),
            worked=lambda _reference, _credential: None,
            stale_seconds=0,
            grace_seconds=0.0,
            references=plainly,
            origin=ORIGIN,
        )

    async def bring(self, path: str, *, where: str, name: str, tag: str) -> tuple[tuple[str, Image], ...]:
        """Import what lies at *path* and return each name with its image.

        Args:
            path: of an OCI layout (a directory), or of an archive of one, or of what `docker save` writes.
            where: what messages call it.
            name: the name that the image is to have, "" for those in the archive.
            tag: which image is meant, "" for all.

        Raises:
            ShimError, RootfsError: what is wrong; images that came before it are here.
        """
        files = await in_thread(self._threads.downloads, lambda _: open_files(path))
        try:
            offers = await in_thread(self._threads.downloads, lambda _: offers_of(files, self._settings.most_layers))
            wanted = chosen(offers, name, tag)
            return tuple([(str(one), await self._pulled(files, one, offer, where)) for one, offer in wanted])
        finally:
            files.close()

    async def take(
        self, opening: Callable[[], Files], reference: Reference, offer: Offer, where: str, find: Find, tally: Tally
    ) -> Image:
        """Import the one image *offer* as *reference*.

        Args:
            opening: opens the files that have its blobs; in a thread.
            reference: its name.
            offer: the image.
            where: what messages call the store that has it.
            find: tells where the layers of the image stand unpacked.
            tally: is told what of them is shared afterwards.

        Raises:
            ShimError, RootfsError: what is wrong.
        """
        standing = Standing(self._store.helper, find, tally)
        files = await in_thread(self._threads.downloads, lambda _: opening())
        try:
            return await self._pulled(files, reference, offer, where, standing)
        finally:
            files.close()

    async def _pulled(
        self, files: Files, reference: Reference, offer: Offer, where: str, standing: Standing | None = None
    ) -> Image:
        network = Carried(files, offer, self._threads, where, standing)
        settings = replace(self._settings, by_digest=offer.genuine)
        puller = Puller(self._store, network, self._layers.out_of(network), self._forms, self._publish, settings)
        try:
            return await puller.pull(str(reference), None)
        finally:
            await puller.close()

"""The image service without gRPC: every call of the server and the command line ends here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidReference, InvalidRequest, StoreDamaged
from cri_shim.images.prune import Prune, freed_bytes
from cri_shim.images.shortname import References, plainly
from cri_shim.registry.flow import ORDINARY
from cri_shim.store.image import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.auth.credential import Credential
    from cri_shim.images.explain import Explainer
    from cri_shim.images.importing import Intake, Taken
    from cri_shim.images.layers import Layers
    from cri_shim.images.progress import PullProgress
    from cri_shim.images.publishing import Publishing
    from cri_shim.images.pull import Ended, Puller
    from cri_shim.images.scrub import Scrub
    from cri_shim.oci.reference import Reference
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store

_PATIENCE_SECONDS = 1.0

# `cafe` and `beef` are names of images as well as beginnings of ids. Where an image is asked about that is good enough;
# where one is removed the id must be given to at least what docker prints of it.
_LEAST_DIGITS_TO_REMOVE = 12


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a root at one moment. *handoffs* tells of each whether it works."""

    images: int
    layers: int
    room_bytes: Mapping[str, int]
    handoffs: Mapping[str, bool]
    damages_found: int
    damages_repaired: int
    damaged_layers: int
    damaged_images: int


class Images:
    """Pull, list, find, remove. Every method is called on the event loop; only those that await wait for anything."""

    def __init__(
        self,
        store: Store,
        puller: Puller,
        layers: Layers,
        explainer: Explainer,
        publishing: Publishing,
        references: References = plainly,
        intake: Intake | None = None,
        *,
        scrub: Scrub,
    ) -> None:
        """*references* tells what a name means: several, the first that is here, for a short one."""
        self.scrub = scrub
        self.prune = Prune(store, publishing)
        self._store = store
        self._intake = intake
        self._publishing = publishing
        self._references = references
        self._explainer = explainer
        self._puller = puller
        self._layers = layers

    async def pull(self, name: str, given: Credential | None, weight: int = ORDINARY) -> Image:
        """Bring the image *name* here and return it; *weight* is how heavily it counts beside others meanwhile.

        Raises:
            InvalidRequest: no image is named.
            ShimError, RootfsError: why it could not be pulled.
        """
        if not name.strip():
            raise InvalidRequest("no image is named")
        return await self._puller.pull(name, given, weight)

    async def take(self, path: str, *, where: str, name: str, tag: str) -> tuple[tuple[str, Image], ...]:
        """Import what lies at *path* (`importing.Importer.bring`) and return each name with its image.

        Raises:
            ShimError, RootfsError: what is wrong with it.
        """
        if self._intake is None:
            raise InvalidRequest("nothing can be imported here")
        return await self._intake.importer.bring(path, where=where, name=name, tag=tag)

    async def adopt(self) -> Taken:
        """Take over the images that the runtime has pulled itself; see `handoff.containerd.adopt` and `graphimport`.

        Raises:
            InvalidRequest: there is no runtime whose images could be taken over.
            ShimError, RootfsError: it cannot be asked.
        """
        if self._intake is None or self._intake.adopt is None:
            raise InvalidRequest(
                'there is no runtime to take images over from: this needs runtime = "containerd" or "cri-o"'
            )
        return await self._intake.adopt()

    async def take_containerd(self) -> Taken:
        """Take over the images that containerd has pulled itself; see `handoff.containerd.adopt`.

        Raises:
            InvalidRequest: it is given no images by us.
            ShimError, RootfsError: it cannot be asked.
        """
        if self._intake is None or self._intake.containerd is None:
            raise InvalidRequest('this needs runtime = "containerd"')
        return await self._intake.containerd()

    async def take_storage(self, root: str, *, name: str, tag: str) -> Taken:
        """Import images that CRI-O or podman has in the graph root *root*, "" for the configured ones.

        Raises:
            InvalidRequest: there is none, or it has no such image.
            ShimError, RootfsError: it cannot be read.
        """
        if self._intake is None or self._intake.storage is None:
            raise InvalidRequest("nothing can be imported here")
        return await self._intake.storage(root, name, tag)

    async def close(self) -> None:
        """End what goes on although no caller waits for it."""
        await self.scrub.close()
        await self._puller.close()

    def images(self) -> tuple[Image, ...]:
        """Return every image, in order of its id; the same tuple as before when nothing has changed."""
        return self._store.catalog.ordered()

    def unique_bytes(self, image: Image) -> int:
        """Return what the removal of *image* alone sets free: what no other image needs."""
        return freed_bytes(self._store.catalog, (image,))

    def shared(self, image: Image) -> frozenset[str]:
        """Return those layer directories of *image* whose content another image needs as well."""
        count = self._store.catalog.references.layer
        return frozenset(layer.name for layer in image.layers if count(layer.diff_id.hex) > 1)

    def find(self, text: str) -> Image | None:
        """Return the image that *text* means: an id, then a name, then the beginning of an id.

        A name that is here wins over a short id, so that `cafe` never means an image whose id begins so.
        """
        catalog = self._store.catalog
        return catalog.by_id(text) or self._by_name(text) or catalog.by_short_id(text)

    async def usable(self, text: str) -> Image | None:
        """Return the image that *text* means if the runtimes can use it.

        One that is damaged, or that they cannot be given, is as absent: kubelet pulls it again, which repairs it.
        """
        image = self.find(text)
        if image is None or not self._store.is_whole(image) or not await self._publishing.verify(image):
            return None
        return self._store.catalog.images.get(image.id)

    async def remove(self, text: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        """Forget the image that *text* means, with all its names; absent is fine.

        Returns when the room is free, or after *patience_seconds* at the latest.

        Raises:
            InvalidRequest: *text* is no name here, and too little of an id.
            HandOffFailed: a runtime cannot do without it; nothing was removed.
        """
        image = self._to_remove(text)
        if image is not None:
            await self._publishing.retract(image, lambda: self._store.forget_image(image.id))
            await self._store.emptied(patience_seconds)

    def usage(self) -> Usage:
        """Return what the root takes, from counters."""
        return sum(self._store.room(self._arriving()).values(), Usage(0, 0))

    def figures(self) -> Figures:
        """Return what the metrics tell, from counters."""
        return Figures(
            images=len(self._store.catalog.images),
            layers=len(self._store.catalog.layers),
            room_bytes={kind: usage.used_bytes for kind, usage in self._store.room(self._arriving()).items()},
            handoffs={name: _works(told) for name, told in self._publishing.status().items()},
            damages_found=self.scrub.found,
            damages_repaired=self.scrub.repaired,
            damaged_layers=len(self._store.marks.layers),
            damaged_images=len(self._store.marks.images),
        )

    def when_pulled(self, tell: Ended) -> None:
        """Have *tell* called as well, on the event loop, whenever a pull has ended; it must not raise."""
        self._puller.ended.append(tell)

    def _arriving(self) -> Usage:
        arriving = [transfer.arrived_bytes for transfer in self._layers.transfers if transfer.ingest is not None]
        return Usage(sum(arriving), len(arriving))

    async def config_bytes(self, image: Image) -> bytes:
        """Return the image's config as the registry served it.

        Raises:
            StoreDamaged: it is not on the disk any more.
        """
        try:
            return await self._store.disk(lambda: self._store.blobs.get(image.id))
        except StoreDamaged:
            self._store.damaged.add(image.id)  # the next pull fetches it again, and does not trust a HEAD
            raise

    async def explain(self, name: str) -> dict[str, object]:
        """Return what a pull of *name* would do, and why; nothing is pulled.

        Raises:
            InvalidRequest, InvalidReference: no image is named.
        """
        if not name.strip():
            raise InvalidRequest("no image is named")
        return await self._explainer.explain(name)

    def pulls(self) -> tuple[PullProgress, ...]:
        """Return the pulls that are running."""
        return tuple(self._puller.running.values())

    def pulling(self, text: str) -> PullProgress | None:
        """Return the pull of the image *text* that is running; of several (one per credential), the first."""
        try:
            names = {str(one) for one in self._references(text)}
        except InvalidReference:
            return None
        return next((pull for pull in self.pulls() if pull.name in names), None)

    def status(self) -> dict[str, object]:
        """Return what the admin socket shows."""
        usage = self.usage()
        return {
            "root": str(self._store.layout.root),
            "images": len(self._store.catalog.images),
            "layers": len(self._store.catalog.layers),
            "used_bytes": usage.used_bytes,
            "inodes": usage.inodes,
            "helper": self._store.helper.facts(),
            "published": self._publishing.status(),
            "check": self.scrub.status(),
            "pulls": [pull.as_json() for pull in self.pulls()],
            "recent": [pull.as_json() for pull in self._puller.recent],
        }

    def records(self) -> dict[str, object]:
        """Return the records of the pulls that run, and of the last that ended, the newest last."""
        return {
            "running": [pull.as_json() for pull in self.pulls()],
            "recent": [pull.as_json() for pull in self._puller.recent],
        }

    def _to_remove(self, text: str) -> Image | None:
        catalog = self._store.catalog
        if (image := catalog.by_id(text) or self._by_name(text)) is not None:
            return image
        image = catalog.by_short_id(text)
        if image is not None and len(text) < _LEAST_DIGITS_TO_REMOVE and not text.startswith("sha256:"):
            raise InvalidRequest(
                f"{text} is no name here but the beginning of an image id; to remove that image give at least "
                f"{_LEAST_DIGITS_TO_REMOVE} digits of it, or sha256: before them"
            )
        return image

    def _by_name(self, text: str) -> Image | None:
        try:
            references = self._references(text)
        except InvalidReference:
            return None
        found = (self._store.catalog.by_name(str(one)) or self._by_instance(one) for one in references)
        return next((image for image in found if image is not None), None)

    def _by_instance(self, reference: Reference) -> Image | None:
        """An image that came out of an index is also known by the digest of its own manifest."""
        if reference.digest is None:
            return None
        return self._store.catalog.by_manifest(reference.name, reference.digest)


def _works(told: object) -> bool:
    return isinstance(told, dict) and told.get("state") != "waiting" and not told.get("failure")

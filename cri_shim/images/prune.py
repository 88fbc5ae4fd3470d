"""Throwing away what is not needed, and telling beforehand, to the byte, what that sets free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cri_shim.errors import ShimError
from cri_shim.store.references import directories
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cri_shim.images.publishing import Publishing
    from cri_shim.store.catalog import Catalog
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store

EMPTIED_SECONDS = 60.0
"""How long a prune waits for the room to be free."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes: *images*, and besides them what nothing stands on. Sizes are what is free afterwards."""

    images: tuple[Image, ...]
    images_bytes: int
    loose_bytes: int
    waiting_bytes: int

    @property
    def total_bytes(self) -> int:
        """What is free afterwards, in all."""
        return self.images_bytes + self.loose_bytes + self.waiting_bytes


@dataclass(slots=True)
class Pruned:
    """What was planned, and what had to stay all the same, with the reason."""

    plan: Plan
    left: dict[str, str] = field(default_factory=dict)


class Prune:
    """Prunes one root."""

    def __init__(self, store: Store, publishing: Publishing) -> None:
        self._store = store
        self._publishing = publishing

    async def plan(self, chosen: Callable[[Image], bool]) -> Plan:
        """Return what a prune of the images that are *chosen*, but for those that are mounted, sets free."""
        images = tuple(filter(chosen, self._store.catalog.ordered()))
        layers = frozenset[str]().union(*map(directories, images))
        mounted = await self._publishing.mounted(layers) if layers else frozenset()
        return self.planned(tuple(image for image in images if not _all_in(image, mounted)))

    def planned(self, images: tuple[Image, ...] = ()) -> Plan:
        """Return what a prune of *images*, whoever uses them, sets free."""
        catalog, loose = self._store.catalog, self._store.loose()
        return Plan(
            images=images,
            images_bytes=freed_bytes(catalog, images),
            loose_bytes=sum(catalog.layers[name].usage.used_bytes for name in loose),
            waiting_bytes=self._store.partials.usage.used_bytes,
        )

    async def run(self, plan: Plan) -> Pruned:
        """Carry out *plan*, and return when the room is free, or after EMPTIED_SECONDS."""
        pruned = Pruned(plan)
        for image in plan.images:
            if (known := self._store.catalog.images.get(image.id)) is None:
                continue
            try:
                await self._publishing.retract(known, partial(self._store.forget_image, known.id))
            except (ShimError, RootfsError) as error:
                pruned.left[next(iter(image.names), str(image.id))] = str(error)
        self._store.end_grace()
        await self._store.collect()
        await self._store.partials.prune(self._store, everything=True)
        await self._store.emptied(EMPTIED_SECONDS)
        return pruned


def freed_bytes(catalog: Catalog, images: Iterable[Image]) -> int:
    """Return what is free when *images* are gone: the layers and documents that no other image needs."""
    images = tuple(images)
    layers = Counter(name for image in images for name in directories(image))
    documents = Counter(
        one for image in images for one in {document.digest: document for document in image.documents}.values()
    )
    known = catalog.layers
    return sum(
        known[name].usage.used_bytes
        for name, count in layers.items()
        if name in known and catalog.references.layer(name) == count
    ) + sum(
        document.size_bytes
        for document, count in documents.items()
        if catalog.references.documents(document.digest) == count
    )


def _all_in(image: Image, mounted: frozenset[str]) -> bool:
    """A container stands on all layers of its image; one that is mounted may belong to another image."""
    names = frozenset(image.layer_names)
    return bool(names) and names <= mounted

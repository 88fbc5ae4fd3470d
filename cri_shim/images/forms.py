"""The form that each layer of an image must have where it stands.

Most layers are *plain*: one directory, shared by every image. Three things need a directory of their own, keyed by
the chain below it and made of hard links (rootfs.forms):

* *bottom*: a layer with whiteouts as the lowest: nothing is below to hide, and they would show as ghosts;
* *chain*: a layer that has entries in directories it does not list: those take after the layers below;
* *again*: the same diff ID a second time in one image: overlayfs refuses one directory twice.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.images.flight import Flights
from cri_shim.store.image import Usage
from cri_shim.store.seal import Seal, decode_implied, encode_seal
from cri_shim.store.store import run_job, undisturbed
from rootfs.digest import layer_ids

if TYPE_CHECKING:
    from cri_shim.store.catalog import Layer
    from cri_shim.store.lease import Lease
    from cri_shim.store.store import Store
    from rootfs.digest import Digest


@dataclass(frozen=True, slots=True)
class _Place:
    """A layer at its place: what is below it, nearest first, and whether it stands there a second time."""

    layer: Layer
    chain: str
    below: tuple[str, ...]
    again: bool


class Forms:
    """Makes the forms that are missing."""

    def __init__(self, store: Store, sync: str) -> None:
        self._store = store
        self._sync = sync
        self._flights: Flights[tuple[str, str], str] = Flights()

    async def names_for(self, diff_ids: tuple[Digest, ...], lease: Lease) -> tuple[str, ...]:
        """Return the directory of each layer, bottom first; the plain layers lie here already."""
        names: list[str] = []
        for diff_id, chain in zip(diff_ids, layer_ids(diff_ids), strict=True):
            layer = self._store.catalog.layers[diff_id.hex]
            place = _Place(layer, chain, tuple(reversed(names)), layer.name in names)
            names.append(await self._name_of(place, lease))
        return tuple(names)

    async def _name_of(self, place: _Place, lease: Lease) -> str:
        if not place.below and place.layer.ghosts:
            return await self._made("bottom", _bottom_name(place.layer), place, lease)
        if place.below and place.layer.implied:
            name = await self._made("chain", place.chain, place, lease)
            if name != place.layer.name or not place.again:
                return name
        if place.again:
            return await self._made("again", place.chain, place, lease)
        return place.layer.name

    async def _made(self, kind: str, name: str, place: _Place, lease: Lease) -> str:
        lease.hold(name)
        if self._store.has_layer(name):
            return name
        return await self._flights.join((kind, name), lambda: self._make(kind, name, place, lease))

    async def _make(self, kind: str, name: str, place: _Place, lease: Lease) -> str:
        """Make the form; a chain that would not differ from the plain layer is the plain layer."""
        staging = uuid.uuid4().hex
        plain = place.layer.name
        implied = await self._store.disk(lambda: self._implied_by(place.layer)) if kind == "chain" else ()
        job = self._store.helper.form(staging, source=plain, kind=kind, parents=place.below, implied=implied)
        try:
            made = await run_job(job)
        except BaseException:
            await self._store.discard(staging)
            raise
        if made is None:
            return plain
        formed = Seal(
            name=name,
            diff_id=place.layer.diff_id,
            form=kind,
            usage=Usage(made.copied_bytes, made.inodes),
            ghosts=kind != "bottom" and place.layer.ghosts,
            implied=place.layer.implied,
            source=plain,
        )
        await undisturbed(self._commit(staging, formed, lease))
        return name

    def _implied_by(self, layer: Layer) -> tuple[bytes, ...]:
        return decode_implied((self._store.layout.overlay / layer.name / "implied").read_bytes())

    async def _commit(self, staging: str, seal: Seal, lease: Lease) -> None:
        await self._store.ready_for(seal.name)
        sealed, damaged = encode_seal(seal), self._store.is_damaged(seal.name)
        job = self._store.helper.commit(staging, name=seal.name, seal=sealed, sync=self._sync, replace=damaged)
        await run_job(job)
        await self._store.put_layer(seal.layer, None, None, lease)


def _bottom_name(layer: Layer) -> str:
    # The chain of a single layer is its own diff ID, which is the plain layer's name.
    return hashlib.sha256(b"bottom " + layer.diff_id.hex.encode("ascii")).hexdigest()

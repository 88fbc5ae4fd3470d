"""What the index says, in memory: the answer to every read, without a disk.

It changes only on the event loop, after the transaction that it mirrors has been committed. Everything in it is a
value, so a reader may keep what it got.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cri_shim.store.image import Image, Usage, sorted_names
from rootfs.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SHORT_ID = re.compile(r"(?:sha256:)?([0-9a-f]{3,63})")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer directory. *ghosts*: it holds whiteouts, which must not show when it is the lowest.

    *implied* counts directories that the layer made without an entry of their own.
    """

    name: str
    diff_id: Digest
    form: str
    usage: Usage
    ghosts: bool
    implied: int


@dataclass(frozen=True, slots=True)
class Proof:
    """This blob was seen to unpack to this diff ID."""

    blob: Digest
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class Delivery:
    """This registry delivered these bytes to this node for this repository."""

    registry: str
    repository: str
    blob: Digest


@dataclass(frozen=True, slots=True)
class Opening:
    """A registry let this credential, a keyed hash, read what *name* stood for; *at_s* is wall-clock time."""

    name: str
    credential: str
    digest: Digest
    at_s: int


@dataclass(frozen=True, slots=True)
class Held:
    """The layers of a catalog at one moment, and what was proved about them."""

    layers: dict[str, Layer]
    proofs: set[Proof]
    deliveries: set[Delivery]


@dataclass(slots=True)
class Catalog:
    """Images, names, layers, proofs, deliveries and openings."""

    images: dict[Digest, Image] = field(default_factory=dict)
    names: dict[str, Digest] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    proofs: set[Proof] = field(default_factory=set)
    deliveries: set[Delivery] = field(default_factory=set)
    openings: dict[tuple[str, str], Opening] = field(default_factory=dict)
    _usage: Usage | None = None

    def by_id(self, text: str) -> Image | None:
        """Return the image with the id *text*, with or without `sha256:`."""
        match = _ID.fullmatch(text)
        if match is None:
            return None
        return self.images.get(Digest("sha256", match[1]))

    def by_short_id(self, text: str) -> Image | None:
        """Return the only image whose id begins with *text* (at least three hex digits)."""
        match = _SHORT_ID.fullmatch(text)
        if match is None:
            return None
        found = [image for digest, image in self.images.items() if digest.hex.startswith(match[1])]
        return found[0] if len(found) == 1 else None

    def by_name(self, name: str) -> Image | None:
        """Return the image that the canonical *name* stands for."""
        digest = self.names.get(name)
        return self.images[digest] if digest is not None else None

    def by_manifest(self, repository: str, digest: Digest) -> Image | None:
        """Return the image of *repository* whose platform manifest is *digest*."""
        wanted = (repository + ":", repository + "@")
        return next(
            (i for i in self.images.values() if i.manifest == digest and any(n.startswith(wanted) for n in i.names)),
            None,
        )

    def put(self, image: Image, names: Iterable[str], deliveries: Iterable[Delivery] = ()) -> None:
        """Record *image* under *names* too; another image that had one of them loses it."""
        self.deliveries.update(deliveries)
        held = self.images.get(image.id)
        mine = {*names, *(held.names if held else ())}
        for name in mine:
            if self.names.get(name) != image.id:
                self._take(name)
                self.names[name] = image.id
        tags, digests = sorted_names(mine)
        self.images[image.id] = replace(image, tags=tags, digests=digests)
        self._usage = None

    def put_layer(self, layer: Layer, proof: Proof | None, delivery: Delivery | None) -> None:
        """Record a layer, with what its arrival has proved."""
        self.layers.setdefault(layer.name, layer)
        self._usage = None
        self.proofs.update(() if proof is None else (proof,))
        self.deliveries.update(() if delivery is None else (delivery,))

    def drop(self, image: Digest) -> None:
        """Forget *image* and all its names."""
        dropped = self.images.pop(image, None)
        names = frozenset(dropped.names if dropped else ())
        for name in names:
            del self.names[name]
        self.openings = {key: one for key, one in self.openings.items() if one.name not in names}
        self._usage = None

    def referenced(self) -> set[str]:
        """Return the layer directories that images stand on.

        The plain layer that a form was made of is among them: it costs directories only, and the next image that has
        the layer at another place needs it.
        """
        layers = [layer for image in self.images.values() for layer in image.layers]
        return {layer.name for layer in layers} | {layer.diff_id.hex for layer in layers}

    def documents(self) -> dict[Digest, int]:
        """Return the documents that images keep, with their sizes in bytes."""
        return {doc.digest: doc.size_bytes for image in self.images.values() for doc in image.documents}

    def usage(self) -> Usage:
        """Return what layers and documents take. Kept from one change to the next: kubelet asks all the time."""
        if self._usage is None:
            layers, documents = self.layers.values(), self.documents().values()
            self._usage = Usage(
                sum(layer.usage.used_bytes for layer in layers) + sum(documents),
                sum(layer.usage.inodes for layer in layers) + len(documents),
            )
        return self._usage

    def restore(self, before: Held) -> None:
        """Take back what `drop_layers` dropped, when the index could not follow."""
        self.layers = {**before.layers, **self.layers}
        self.proofs |= before.proofs
        self.deliveries |= before.deliveries
        self._usage = None

    def drop_layers(self, names: Iterable[str]) -> Held:
        """Forget layers, and what was proved about a diff ID or blob that is no longer here; return what was held."""
        before = Held(dict(self.layers), set(self.proofs), set(self.deliveries))
        self._usage = None
        for name in names:
            self.layers.pop(name, None)
        diff_ids = {layer.diff_id for layer in self.layers.values()}
        self.proofs = {proof for proof in self.proofs if proof.diff_id in diff_ids}
        documents = self.documents()
        kept = {proof.blob for proof in self.proofs}
        self.deliveries = {d for d in self.deliveries if d.blob in kept or d.blob in documents}
        return before

    def put_opening(self, opening: Opening, outdated: Iterable[Opening] = ()) -> None:
        """Record an opening in the place of the credential's last one, and forget those that are *outdated*."""
        self.drop_openings(outdated)
        self.openings[opening.name, opening.credential] = opening

    def drop_openings(self, openings: Iterable[Opening]) -> None:
        """Forget *openings*."""
        for one in openings:
            self.openings.pop((one.name, one.credential), None)

    def _take(self, name: str) -> None:
        holder = self.names.pop(name, None)
        if holder is None:
            return
        image = self.images[holder]
        tags, digests = sorted_names(other for other in image.names if other != name)
        self.images[holder] = replace(image, tags=tags, digests=digests)

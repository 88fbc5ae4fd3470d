"""What the index says, in memory: the answer to every read, without a disk.

It changes only on the event loop, after the transaction that it mirrors has been committed. Everything in it is a
value, so a reader may keep what it got. What is asked often, and on the loop, is kept beside it and changed with it: a
question or a change costs what it touches, whether there are five images or five thousand.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.store.image import Image, Usage, sorted_names
from cri_shim.store.provenance import Delivery, Proof, Provenance
from cri_shim.store.references import References, directories
from rootfs.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable

K = TypeVar("K")
V = TypeVar("V")
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
class Opening:
    """A registry let this credential, a keyed hash, read what *name* stood for; *at_s* is wall-clock time."""

    name: str
    credential: str
    digest: Digest
    at_s: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Layers that were taken out of a catalog, and what was known of them and is not any more."""

    layers: tuple[Layer, ...]
    proofs: frozenset[Proof]
    deliveries: frozenset[Delivery]


@dataclass(slots=True)
class Catalog:
    """Images, names, layers, proofs, deliveries and openings.

    The fields are for reading: what is derived from them follows only the methods.
    """

    images: dict[Digest, Image] = field(default_factory=dict)
    names: dict[str, Digest] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    openings: dict[tuple[str, str], Opening] = field(default_factory=dict)
    references: References = field(default_factory=References, init=False, compare=False)
    _ordered: list[Image] = field(default_factory=list, init=False, compare=False)
    _listed: tuple[Image, ...] | None = field(default=None, init=False, compare=False)
    _of_manifest: defaultdict[Digest, set[Digest]] = field(init=False, compare=False)
    _idle: set[str] = field(default_factory=set, init=False, compare=False)
    _forms: Counter[Digest] = field(default_factory=Counter, init=False, compare=False)
    _layer_usage: Usage = field(default=Usage(0, 0), init=False, compare=False)
    _forsaken: set[Digest] = field(default_factory=set, init=False, compare=False)
    _openings_of: defaultdict[str, set[str]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what is not given."""
        self._of_manifest, self._openings_of = defaultdict(set), defaultdict(set)
        self._ordered = sorted(self.images.values(), key=_hex)
        for image in self._ordered:
            self.references.add(image)
            self._of_manifest[image.manifest].add(image.id)
        for layer in self.layers.values():
            self._count(layer)
        for name, credential in self.openings:
            self._openings_of[name].add(credential)
        blobs = (delivery.blob for delivery in self.provenance.deliveries)
        self._forsaken = self.provenance.unneeded(blobs, self.references.document)

    @property
    def proofs(self) -> set[Proof]:
        """Which blob was seen to unpack to which diff ID."""
        return self.provenance.proofs

    @property
    def deliveries(self) -> set[Delivery]:
        """Which registry delivered which blob, for which repository."""
        return self.provenance.deliveries

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
        place = bisect_left(self._ordered, match[1], key=_hex)
        found = [image for image in self._ordered[place : place + 2] if image.id.hex.startswith(match[1])]
        return found[0] if len(found) == 1 else None

    def by_name(self, name: str) -> Image | None:
        """Return the image that the canonical *name* stands for."""
        digest = self.names.get(name)
        return self.images[digest] if digest is not None else None

    def by_manifest(self, repository: str, digest: Digest) -> Image | None:
        """Return the image of *repository* whose platform manifest is *digest*."""
        wanted = (repository + ":", repository + "@")
        candidates = (self.images[one] for one in sorted(self._of_manifest.get(digest, ())))
        return next((image for image in candidates if any(name.startswith(wanted) for name in image.names)), None)

    def ordered(self) -> tuple[Image, ...]:
        """Return every image, in order of its id; the same tuple as before when nothing has changed."""
        if self._listed is None:
            self._listed = tuple(self._ordered)
        return self._listed

    def put(self, image: Image, names: Iterable[str], deliveries: Iterable[Delivery] = ()) -> Image:
        """Record *image* under *names* too, and return it with all it has; another image that had one loses it."""
        self.put_deliveries(deliveries)
        held = self.images.get(image.id)
        mine = {*names, *(held.names if held else ())}
        for name in mine:
            if self.names.get(name) != image.id:
                self._take(name)
                self.names[name] = image.id
        tags, digests = sorted_names(mine)
        recorded = replace(image, tags=tags, digests=digests)
        self._refer(recorded)
        if held is not None:
            self._release(held, image.manifest)
        return recorded

    def put_layer(self, layer: Layer, proof: Proof | None, delivery: Delivery | None) -> None:
        """Record a layer, with what its arrival has proved."""
        if layer.name not in self.layers:
            self.layers[layer.name] = layer
            self._count(layer)
        self.provenance.add(() if proof is None else (proof,), ())
        self.put_deliveries(() if delivery is None else (delivery,))

    def put_deliveries(self, deliveries: Iterable[Delivery]) -> None:
        """Record which registry delivered which blobs."""
        deliveries = tuple(deliveries)
        self.provenance.add((), deliveries)
        self._forsaken.update(delivery.blob for delivery in deliveries)  # as long as nothing needs them

    def drop(self, image: Digest) -> None:
        """Forget *image* and all its names."""
        dropped = self.images.pop(image, None)
        if dropped is None:
            return
        del self._ordered[bisect_left(self._ordered, image.hex, key=_hex)]
        self._listed = None
        for name in dropped.names:
            del self.names[name]
            for credential in self._openings_of.pop(name, ()):
                del self.openings[name, credential]
        self._release(dropped)

    def idle(self) -> frozenset[str]:
        """Return the layer directories that no image stands on."""
        return frozenset(self._idle)

    def usage(self) -> Usage:
        """Return what layers and documents take."""
        return self._layer_usage + Usage(self.references.document_bytes, self.references.document_count)

    def restore(self, dropped: Dropped) -> None:
        """Take back what `drop_layers` dropped, when the index could not follow."""
        for layer in dropped.layers:
            self.put_layer(layer, None, None)
        self.provenance.add(dropped.proofs, ())
        self.put_deliveries(dropped.deliveries)

    def drop_layers(self, names: Iterable[str]) -> Dropped:
        """Forget layers, and what was proved about a diff ID or blob that is no longer here; return what went."""
        gone = tuple(layer for name in names if (layer := self.layers.pop(name, None)) is not None)
        for layer in gone:
            self._idle.discard(layer.name)
            self._layer_usage += Usage(-layer.usage.used_bytes, -layer.usage.inodes)
            self._forms[layer.diff_id] -= 1
        proofs = self.provenance.disprove({layer.diff_id for layer in gone if not self._forms[layer.diff_id]})
        self._forsaken.update(proof.blob for proof in proofs)
        deliveries = self.provenance.forget(self._forsaken, self.references.document)
        self._forsaken.clear()
        return Dropped(gone, frozenset(proofs), frozenset(deliveries))

    def put_opening(self, opening: Opening, outdated: Iterable[Opening] = ()) -> None:
        """Record an opening in the place of the credential's last one, and forget those that are *outdated*."""
        key = (opening.name, opening.credential)
        self.drop_openings((*outdated, opening))
        self.openings[key] = opening  # at the end: they stand in the order of their time
        self._openings_of[opening.name].add(opening.credential)

    def drop_openings(self, openings: Iterable[Opening]) -> None:
        """Forget *openings*."""
        for one in openings:
            if self.openings.pop((one.name, one.credential), None) is not None:
                _discard(self._openings_of, one.name, one.credential)

    def openings_of(self, name: str) -> list[Opening]:
        """Return what opened *name*."""
        return [self.openings[name, credential] for credential in self._openings_of.get(name, ())]

    def _count(self, layer: Layer) -> None:
        self._forms[layer.diff_id] += 1
        self._layer_usage += layer.usage
        if not self.references.layer(layer.name):
            self._idle.add(layer.name)

    def _refer(self, image: Image) -> None:
        self._store(image)
        self.references.add(image)
        self._idle -= directories(image)
        self._of_manifest[image.manifest].add(image.id)

    def _release(self, image: Image, manifest: Digest | None = None) -> None:
        """Take back what *image* needed. Its place is taken by one whose platform manifest is *manifest*."""
        self.references.remove(image)
        self._idle.update(
            name for name in directories(image) if name in self.layers and not self.references.layer(name)
        )
        self._forsaken.update(document.digest for document in image.documents)
        if image.manifest != manifest:
            _discard(self._of_manifest, image.manifest, image.id)

    def _take(self, name: str) -> None:
        holder = self.names.pop(name, None)
        if holder is None:
            return
        image = self.images[holder]
        tags, digests = sorted_names(other for other in image.names if other != name)
        self._store(replace(image, tags=tags, digests=digests))

    def _store(self, image: Image) -> None:
        self.images[image.id] = image
        self._listed = None
        place = bisect_left(self._ordered, image.id.hex, key=_hex)
        here = self._ordered[place : place + 1]
        self._ordered[place : place + (1 if here and here[0].id == image.id else 0)] = [image]


def _discard(sets: defaultdict[K, set[V]], key: K, value: V) -> None:
    sets[key].discard(value)
    if not sets[key]:
        del sets[key]


def _hex(image: Image) -> str:
    return image.id.hex

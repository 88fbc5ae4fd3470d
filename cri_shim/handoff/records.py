"""layers.json and images.json of containers-storage: what stands in them, and how a change makes new ones of the old.

Field by field as go.podman.io/storage reads them. One malformed name, digest or time, or one name twice, makes the
whole store unreadable to every runtime, so whatever an image brings along is checked again here. Pure: a change returns
new records and leaves the old ones as they were.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COMPRESSIONS = {"none": 0, "gzip": 2, "zstd": 4}
"""Names of compressions in seals, and the numbers that containers-storage has for them."""

_PLAIN_KEY = re.compile(r"[a-z0-9.]+")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


class LayerRecord(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """A layer at its place in a chain. Without `diff_digest` an image that stands on it cannot be used."""

    id: str
    diff_digest: str
    diff_size: int
    parent: str = ""
    compressed_diff_digest: str = ""
    compressed_size: int = 0
    compression: int = 0
    created: str = ""


class ImageRecord(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """An image; *id* is the bare hex of its config's digest, *layer* the top of its chain."""

    id: str
    digest: str
    layer: str
    metadata: str = "{}"
    names: tuple[str, ...] = ()
    big_data_names: tuple[str, ...] = ()
    big_data_sizes: dict[str, int] = {}
    big_data_digests: dict[str, str] = {}
    created: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """What is published.

    *sources* tells which directory below `overlay/` has the tree of each layer; it is in no file, as the entries of the
    chain say it. *lingering* are images that the store does not have any more: they have no names, and stay as long as
    a runtime's records name them.
    """

    images: Mapping[str, ImageRecord] = field(default_factory=dict)
    layers: Mapping[str, LayerRecord] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    lingering: frozenset[str] = frozenset()

    def chain(self, image: str) -> tuple[str, ...]:
        """Return the layers of the image with the id *image*, the top first."""
        found: list[str] = []
        layer = self.images[image].layer
        while layer in self.layers and layer not in found:
            found.append(layer)
            layer = self.layers[layer].parent
        return tuple(found)

    def with_image(self, image: ImageRecord, layers: Iterable[LayerRecord], sources: Mapping[str, str]) -> Records:
        """Add *image*, or put it in the place of the one with its id; its names are taken from all others."""
        taken = frozenset(image.names)
        images = {
            other.id: _renamed(other, tuple(name for name in other.names if name not in taken))
            for other in self.images.values()
        }
        images[image.id] = image
        added = {layer.id: layer for layer in layers}
        lingering = self.lingering - {image.id}
        return _settled(images, {**self.layers, **added}, {**self.sources, **sources}, lingering)

    def with_names(self, image: str, names: Iterable[str]) -> Records:
        """Give the image with the id *image*, if it is there, other names, which no other image has."""
        if image not in self.images:
            return self
        return replace(self, images={**self.images, image: _renamed(self.images[image], tuple(names))})

    def retracted(self, images: Iterable[str]) -> Records:
        """Take the names of *images*, those that are here: they linger."""
        gone = {key: _renamed(self.images[key], ()) for key in images if key in self.images}
        return replace(self, images={**self.images, **gone}, lingering=self.lingering | gone.keys())

    def without(self, images: Iterable[str]) -> Records:
        """Drop images, and the layers that only they stood on."""
        gone = frozenset(images)
        images_left = {one.id: one for one in self.images.values() if one.id not in gone}
        return _settled(images_left, self.layers, self.sources, self.lingering - gone)

    def lost(self, new: Records) -> Records:
        """Return what *new* does not have any more of these."""
        layers = {key: layer for key, layer in self.layers.items() if key not in new.layers}
        images = {key: image for key, image in self.images.items() if key not in new.images}
        return Records(images, layers, {key: self.sources[key] for key in layers})

    def joined(self, other: Records) -> Records:
        """Return what is in either."""
        return Records(
            {**other.images, **self.images},
            {**other.layers, **self.layers},
            {**other.sources, **self.sources},
            other.lingering | self.lingering,
        )

    def revived(self, dropped: Records) -> Records:
        """Take the images of *dropped* back, with what they stand on and without names: they linger."""
        back = {key: _renamed(image, ()) for key, image in dropped.images.items() if key not in self.images}
        both = dropped.joined(self)
        return _settled({**self.images, **back}, both.layers, both.sources, self.lingering | back.keys())


def _renamed(image: ImageRecord, names: tuple[str, ...]) -> ImageRecord:
    return image if names == image.names else msgspec.structs.replace(image, names=names)


def _settled(
    images: Mapping[str, ImageRecord],
    layers: Mapping[str, LayerRecord],
    sources: Mapping[str, str],
    lingering: frozenset[str],
) -> Records:
    """Keep of the layers those that an image stands on."""
    kept: dict[str, LayerRecord] = {}
    for image in images.values():
        layer = image.layer
        while layer in layers and layer not in kept:
            kept[layer] = layers[layer]
            layer = layers[layer].parent
    return Records(images, kept, {layer: sources[layer] for layer in kept}, lingering)


def union(one: Records, other: Records) -> Records:
    """Return the images of *other* with the layers of both: what a reader may see in the middle of a change."""
    return Records(other.images, {**one.layers, **other.layers}, {**one.sources, **other.sources})


def encode_layers(records: Records) -> bytes:
    """Return layers.json; parents stand before children."""
    return msgspec.json.encode(_parents_first(records.layers))


def encode_images(records: Records) -> bytes:
    """Return images.json."""
    return msgspec.json.encode([records.images[key] for key in sorted(records.images)])


def decode(images: bytes, layers: bytes, sources: Mapping[str, str]) -> Records:
    """Read both files back; images whose chain is not whole are left out.

    Raises:
        StoreDamaged: a file is not one that was written here.
    """
    try:
        read_images = msgspec.json.decode(images or b"[]", type=list[ImageRecord])
        read_layers = msgspec.json.decode(layers or b"[]", type=list[LayerRecord])
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"the records of containers-storage cannot be read: {error}") from error
    known = {layer.id: layer for layer in read_layers if layer.id in sources}
    whole = {image.id: image for image in read_images if _is_whole(image, known)}
    return _settled(whole, known, sources, frozenset())


def _is_whole(image: ImageRecord, layers: Mapping[str, LayerRecord]) -> bool:
    layer = image.layer
    for _ in range(len(layers) + 1):
        if not layer:
            return True
        if layer not in layers:
            return False
        layer = layers[layer].parent
    return False


def _parents_first(layers: Mapping[str, LayerRecord]) -> list[LayerRecord]:
    ordered: dict[str, LayerRecord] = {}
    for key in sorted(layers):
        path: list[LayerRecord] = []
        above = key
        while above in layers and above not in ordered:
            path.append(layers[above])
            above = layers[above].parent
        ordered.update((layer.id, layer) for layer in reversed(path))
    return list(ordered.values())


def big_data_file(key: str) -> str:
    """Return the name of the file that holds the item *key* of an image."""
    if _PLAIN_KEY.fullmatch(key):
        return key
    return "=" + base64.b64encode(key.encode()).decode("ascii")


def moment(text: str) -> str:
    """Return *text*, a time that an image brought along, as every reader takes it; empty when it is none."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return ""
    day, time, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{(fraction or '')[:7]}{zone.upper().replace('Z', '+00:00')}")
        return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return ""

"""The values of the store: an image, its layers, its documents, and the record they are kept as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.errors import StoreDamaged
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_TEXTS_BYTES: Final = 16 << 10
"""Of a manifest's annotations in all, and of a config's user. An image brings them along, they stay in memory as long
as it is here, and a list that a handful of hostile images have made larger than clients take would leave kubelet
without any list."""

LONGEST_CREATED: Final = 64
"""Characters of a config's `created`, which RFC 3339 writes in 35."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Room taken on the disk."""

    used_bytes: int
    inodes: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.used_bytes + other.used_bytes, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer at its place in an image. *name* is its directory below `overlay/`."""

    diff_id: Digest
    name: str
    blob: Digest
    blob_size_bytes: int
    media_type: str
    unpacked_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest, an index or a config that an image keeps in `blobs/`."""

    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image on this node. Layers stand bottom first, names sorted.

    *id* is the digest of the config; *target* the digest that the name stood for (an index where there was one),
    *manifest* the manifest chosen for this platform. *created* is the text in the config. *delivered* are the
    repositories, with their registries, that gave these very documents and blobs to a pull.
    """

    id: Digest
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    user: str
    manifest: Digest
    target: Digest
    media_type: str
    documents: tuple[Document, ...]
    layers: tuple[ImageLayer, ...]
    annotations: tuple[tuple[str, str], ...] = ()
    created: str = ""
    pulled_at_ns: int = 0
    pulled_from: str = ""
    delivered: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What the image takes on the disk, layers that it shares included."""
        return sum(layer.unpacked_bytes for layer in self.layers) + sum(doc.size_bytes for doc in self.documents)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the image, tags first."""
        return self.tags + self.digests

    @property
    def arrived(self) -> frozenset[Digest]:
        """Everything of the image that somebody delivered: documents, and the blobs of layers."""
        return frozenset((*(document.digest for document in self.documents), *(layer.blob for layer in self.layers)))

    def after(self, before: Image | None) -> Image:
        """Return this image with the repositories, too, that delivered the same for *before*, which it replaces."""
        if before is None or before.arrived != self.arrived:
            return self
        return replace(self, delivered=tuple(sorted({*self.delivered, *before.delivered})))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The directories of the layers, bottom first."""
        return tuple(layer.name for layer in self.layers)


class _LayerRecord(msgspec.Struct, forbid_unknown_fields=True):
    diff_id: str
    name: str
    blob: str
    blob_size_bytes: int
    media_type: str
    unpacked_bytes: int
    inodes: int


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    user: str
    manifest: str
    target: str
    media_type: str
    documents: list[tuple[str, int]]
    layers: list[_LayerRecord]
    annotations: list[tuple[str, str]]
    created: str
    pulled_at_ns: int
    pulled_from: str
    names: list[str]
    delivered: list[str] = []  # none in the records that were written before it was known


def fitting(annotations: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return *annotations*, of which those that would be too much are left out."""
    chosen: list[tuple[str, str]] = []
    room_bytes = LONGEST_TEXTS_BYTES
    for key, text in annotations:
        size_bytes = len(key.encode("utf-8", "replace")) + len(text.encode("utf-8", "replace"))
        if size_bytes <= room_bytes:
            chosen.append((key, text))
            room_bytes -= size_bytes
    return tuple(chosen)


def record_of(image: Image) -> bytes:
    """Return the record of *image* as JSON, names included (the index keeps them a second time, for moves)."""
    return msgspec.json.encode(
        _Record(
            id=str(image.id),
            user=image.user,
            manifest=str(image.manifest),
            target=str(image.target),
            media_type=image.media_type,
            documents=[(str(doc.digest), doc.size_bytes) for doc in image.documents],
            layers=[_layer_record(layer) for layer in image.layers],
            annotations=list(image.annotations),
            created=image.created,
            pulled_at_ns=image.pulled_at_ns,
            pulled_from=image.pulled_from,
            names=list(image.names),
            delivered=list(image.delivered),
        )
    )


def image_from(record: bytes, names: Iterable[str]) -> Image:
    """Read a record back; *names* are the names that the image has now.

    Raises:
        StoreDamaged: the record is not one that `record_of` wrote.
    """
    try:
        fields = msgspec.json.decode(record, type=_Record)
        tags, digests = sorted_names(names)
        return Image(
            id=Digest.parse(fields.id),
            tags=tags,
            digests=digests,
            user=fields.user[:LONGEST_TEXTS_BYTES],
            manifest=Digest.parse(fields.manifest),
            target=Digest.parse(fields.target),
            media_type=fields.media_type,
            documents=tuple(Document(Digest.parse(digest), size) for digest, size in fields.documents),
            layers=tuple(_layer_from(layer) for layer in fields.layers),
            annotations=fitting(fields.annotations),
            created=fields.created[:LONGEST_CREATED],
            pulled_at_ns=fields.pulled_at_ns,
            pulled_from=fields.pulled_from,
            delivered=tuple(fields.delivered),
        )
    except (msgspec.DecodeError, RootfsError) as error:
        raise StoreDamaged(f"an image record cannot be read: {error}") from error


def record_names(record: bytes) -> tuple[str, ...]:
    """Return the names that the image had when *record* was written.

    Raises:
        StoreDamaged: the record is not one that `record_of` wrote.
    """
    try:
        return tuple(msgspec.json.decode(record, type=_Record).names)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"an image record cannot be read: {error}") from error


def sorted_names(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split *names* into (tags, names by digest), each sorted."""
    ordered = sorted(names)
    return tuple(n for n in ordered if "@" not in n), tuple(n for n in ordered if "@" in n)


def _layer_record(layer: ImageLayer) -> _LayerRecord:
    return _LayerRecord(
        diff_id=str(layer.diff_id),
        name=layer.name,
        blob=str(layer.blob),
        blob_size_bytes=layer.blob_size_bytes,
        media_type=layer.media_type,
        unpacked_bytes=layer.unpacked_bytes,
        inodes=layer.inodes,
    )


def _layer_from(fields: _LayerRecord) -> ImageLayer:
    return ImageLayer(
        diff_id=Digest.parse(fields.diff_id),
        name=fields.name,
        blob=Digest.parse(fields.blob),
        blob_size_bytes=fields.blob_size_bytes,
        media_type=fields.media_type,
        unpacked_bytes=fields.unpacked_bytes,
        inodes=fields.inodes,
    )

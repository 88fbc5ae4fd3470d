"""Manifests and indexes: bytes in, `Manifest` or `Index` out (OCI manifest.md, image-index.md; Docker schema 2).

A document is taken for what its media type and its shape both say; where they differ, or where it has the shape of
both, it is refused: what one reader takes for an index another would take for an image. The bounds are on the document
(4 MiB), on the layers of an image and on the entries of an index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ContentRejected, LimitExceeded, Unsupported
from cri_shim.oci import media
from cri_shim.oci.config import ImageConfig, check_names_something, parse_config
from cri_shim.oci.descriptor import Descriptor, parse_descriptor
from cri_shim.oci.fields import Fields, KnownKeys
from cri_shim.oci.shown import shown
from cri_shim.oci.strictjson import DOCUMENT_BYTES, decode

if TYPE_CHECKING:
    from rootfs.digest import Digest

__all__ = [
    "Descriptor",
    "ImageConfig",
    "Index",
    "Layer",
    "Manifest",
    "pair_layers",
    "parse_config",
    "parse_manifest",
]

MOST_LAYERS: Final = 127
"""Layers of an image; overlayfs and the tools that make images end there as well."""
MOST_ENTRIES: Final = 10_000
"""Entries of an index."""

_INDEX: Final = "an index"
_IMAGE: Final = "the manifest of an image"
_SCHEMA_1: Final = "a manifest of schema 1"
_SHAPES: Final = {"manifests": _INDEX, "layers": _IMAGE, "config": _IMAGE, "fsLayers": _SCHEMA_1}
_KEYS: Final = KnownKeys("schemaVersion", "mediaType", "artifactType", "annotations", "subject", *_SHAPES)


@dataclass(frozen=True, slots=True)
class Index:
    """An index: one manifest per platform. The entries stand in the document's order."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one image; its layers stand bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image: the blob it comes as, and the digest of the tar that it unpacks to."""

    descriptor: Descriptor
    diff_id: Digest


def parse_manifest(data: bytes, media_type: str, *, most_layers: int = MOST_LAYERS) -> Index | Manifest:
    """Read what a manifest request returned; *media_type* is its Content-Type, or what the index said it is.

    Raises:
        ContentRejected: it is neither an index nor a manifest, or could be taken for both.
        Unsupported: schema 1, an artifact, an encrypted or unknown layer, an unknown digest algorithm.
        LimitExceeded: the document, the layers or the entries go over their bound.
    """
    fields = Fields.of(decode(data), "manifest", _KEYS)
    kind = _kind(fields, media.bare(media_type))
    if kind is _INDEX:
        return _index(fields, media_type)
    return _manifest(fields, media_type, most_layers)


def pair_layers(manifest: Manifest, config: ImageConfig) -> tuple[Layer, ...]:
    """Put each layer of the manifest beside its diff ID in the config, bottom first.

    Raises:
        ContentRejected: they are not equally many, or one blob is said to unpack to two different tars.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise ContentRejected(
            f"the manifest has {len(manifest.layers)} layers and the config {len(config.diff_ids)} diff IDs"
        )
    layers = tuple(map(Layer, manifest.layers, config.diff_ids))
    first: dict[Digest, Digest] = {}
    for layer in layers:
        if first.setdefault(layer.descriptor.digest, layer.diff_id) != layer.diff_id:
            raise ContentRejected(f"the config gives two diff IDs to the layer {layer.descriptor.digest}")
    return layers


def _kind(fields: Fields, header: str) -> str:
    """Decide what the document is, or refuse it."""
    shapes = {shape for key, shape in _SHAPES.items() if key in fields}
    if len(shapes) > 1:
        raise ContentRejected(f"the document has the shape of {' and of '.join(sorted(shapes))}")
    shape = next(iter(shapes), "")
    if shape == _SCHEMA_1:
        raise Unsupported("the manifest is of Docker's schema 1, which was given up in 2017: push the image again")
    declared = _declared(fields.text("mediaType"))
    for promised in (declared, _named(header)):
        if promised and shape and promised != shape:
            raise ContentRejected(f"the document is called {promised} and has the shape of {shape}")
    version = fields.values.get("schemaVersion", 2)
    if type(version) is not int or version != 2:
        raise ContentRejected("manifest.schemaVersion is not 2")
    if not shape:
        raise ContentRejected("the document is neither an index nor the manifest of an image")
    return shape


def _declared(media_type: str) -> str:
    if media_type and not (named := _named(media_type)):
        raise Unsupported(f"the manifest is of the type {shown(media_type)}, which is no image")
    return named if media_type else ""


def _named(media_type: str) -> str:
    """Give the kind that a media type stands for; "" for one that says nothing (`text/plain` of a broken registry)."""
    if media.is_index(media_type):
        return _INDEX
    if media.is_manifest(media_type):
        return _IMAGE
    return _SCHEMA_1 if media.is_schema_1(media_type) else ""


def _index(fields: Fields, media_type: str) -> Index:
    entries = fields.items("manifests")
    if len(entries) > MOST_ENTRIES:
        raise LimitExceeded(f"the index has {len(entries)} entries, more than {MOST_ENTRIES}")
    return Index(
        media_type=_media_type(fields, media_type, media.OCI_INDEX),
        manifests=tuple(parse_descriptor(entry, f"manifests[{place}]") for place, entry in enumerate(entries)),
        annotations=fields.pairs("annotations"),
    )


def _manifest(fields: Fields, media_type: str, most_layers: int) -> Manifest:
    config = _config(fields)
    entries = fields.items("layers")
    if len(entries) > most_layers:
        raise LimitExceeded(f"the image has {len(entries)} layers, more than {most_layers}")
    layers = tuple(_layer(entry, f"layers[{place}]") for place, entry in enumerate(entries))
    _check_sizes(config, layers)
    return Manifest(
        media_type=_media_type(fields, media_type, media.OCI_MANIFEST),
        config=config,
        layers=layers,
        annotations=fields.pairs("annotations"),
    )


def _media_type(fields: Fields, header: str, otherwise: str) -> str:
    """Give the document's own media type, else the one it came with, else the specification's."""
    return fields.text("mediaType") or (media.bare(header) if _named(media.bare(header)) else otherwise)


def _config(fields: Fields) -> Descriptor:
    if artifact := fields.text("artifactType"):
        raise Unsupported(f"this is an artifact of the type {shown(artifact)}, not an image")
    config = parse_descriptor(fields.values.get("config"), "manifest.config")
    if not media.is_config(config.media_type):
        raise Unsupported(f"this is an artifact of the type {shown(config.media_type)}, not an image")
    check_names_something((config.digest,), "manifest.config")
    if config.size_bytes > DOCUMENT_BYTES:
        raise LimitExceeded(f"the config has {config.size_bytes} bytes, more than {DOCUMENT_BYTES}")
    return config


def _layer(entry: object, where: str) -> Descriptor:
    layer = parse_descriptor(entry, where)
    if media.is_layer(layer.media_type):
        return layer
    if media.is_encrypted(layer.media_type):
        raise Unsupported(f"{where} is encrypted ({shown(layer.media_type)}): layers are not decrypted here")
    raise Unsupported(f"{where} is of the type {shown(layer.media_type)}, which is no layer that can be unpacked")


def _check_sizes(config: Descriptor, layers: tuple[Descriptor, ...]) -> None:
    """Refuse a digest that is given two sizes, and a config that is a layer as well."""
    sizes: dict[Digest, int] = {}
    for layer in layers:
        if sizes.setdefault(layer.digest, layer.size_bytes) != layer.size_bytes:
            raise ContentRejected(f"the layer {layer.digest} is given two sizes")
    if config.digest in sizes:
        raise ContentRejected(f"the config is a layer as well ({config.digest})")

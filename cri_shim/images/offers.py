"""What an archive offers: images with their names, and the document that each begins with.

OCI image layouts (image-layout.md: `index.json`, `blobs/<algorithm>/<digest>`) bring their own documents. What `docker
save` wrote (`manifest.json`, a config, a tar for each layer) has no manifest: one is made, whose digest is nobody's, so
such an image gets its tags and no name by digest. Where both are there, as newer dockers write them, the layout counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from cri_shim.errors import ContentRejected, InvalidReference, InvalidRequest, LimitExceeded
from cri_shim.oci import media
from cri_shim.oci.descriptor import parse_descriptor
from cri_shim.oci.manifest import MOST_LAYERS
from cri_shim.oci.reference import parse_reference
from cri_shim.oci.strictjson import decode
from rootfs.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cri_shim.images.archive import Files, Part
    from cri_shim.oci.reference import Reference

DOCUMENT_BYTES: Final = 4 << 20
MOST_IMAGES: Final = 100

_REF_NAME: Final = "org.opencontainers.image.ref.name"
_FULL_NAME: Final = "io.containerd.image.name"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_TAGS_TOLD: Final = 10


@dataclass(frozen=True, slots=True)
class Offer:
    """An image of an archive. *blobs* are files that stand for a digest beside those of a layout."""

    names: tuple[Reference, ...]
    tag: str
    target: Digest
    media_type: str
    blobs: dict[Digest, Part | bytes]
    genuine: bool


def offers_of(files: Files, most_layers: int = MOST_LAYERS) -> tuple[Offer, ...]:
    """Return the images in *files*, none of more than *most_layers* layers; for a thread, as files are hashed.

    Raises:
        ContentRejected: it is neither a layout nor what `docker save` writes, or is not whole.
        LimitExceeded: a document is too large, or an image has too many layers.
    """
    if (part := files.find("index.json")) is not None:
        found = tuple(_of_layout(_decoded(part, "index.json")))
    elif (part := files.find("manifest.json")) is not None:
        found = tuple(_of_docker(files, _decoded(part, "manifest.json"), most_layers))
    else:
        raise ContentRejected("it has neither an index.json (OCI layout) nor a manifest.json (docker save)")
    if not 0 < len(found) <= MOST_IMAGES:
        raise ContentRejected(f"it has {len(found)} images; 1 to {MOST_IMAGES} can be imported at once")
    return found


class Named(Protocol):
    """An image that is called *names*, and *tag* by whatever has it."""

    @property
    def names(self) -> tuple[Reference, ...]:
        """Its names."""

    @property
    def tag(self) -> str:
        """What else it is called, "" for nothing."""


N = TypeVar("N", bound=Named)


def chosen(offers: tuple[N, ...], name: str, tag: str) -> tuple[tuple[Reference, N], ...]:
    """Return which images are to be imported under which names.

    Args:
        offers: what there is.
        name: the name that the one image is to have, "" for those in the archive.
        tag: which image is meant, by what the archive calls it; "" for all.

    Raises:
        InvalidRequest: no image is called so, one name is given for several, or none is there for any.
        InvalidReference: *name* is none.
    """
    wanted = [offer for offer in offers if not tag or tag == offer.tag or tag in map(str, offer.names)]
    if not wanted:
        called = _listed(sorted(filter(None, (offer.tag for offer in offers))))
        raise InvalidRequest(f"there is no image {tag!a} in it; it has {called}")
    if name:
        if len(wanted) > 1:
            raise InvalidRequest(f"it has {len(wanted)} images: say which one is to be {name!a}")
        return ((parse_reference(name), wanted[0]),)
    named = tuple((reference, offer) for offer in wanted for reference in offer.names)
    if not named:
        raise InvalidRequest("it says no name for its image: give one with --name")
    return named


def _listed(tags: list[str]) -> str:
    more = f", and {len(tags) - _TAGS_TOLD} more" if len(tags) > _TAGS_TOLD else ""
    return ", ".join(tags[:_TAGS_TOLD]) + more or "nothing"


def _decoded(part: Part, what: str) -> object:
    try:
        return decode(part.read(DOCUMENT_BYTES), DOCUMENT_BYTES)
    except ValueError as error:
        raise ContentRejected(f"{what} is no JSON") from error


def _of_layout(index: object) -> Iterator[Offer]:
    entries = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(entries, list):
        raise ContentRejected("index.json lists no manifests")
    for entry in entries[: MOST_IMAGES + 1]:
        descriptor = parse_descriptor(entry, "an entry of index.json")
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        told = annotations if isinstance(annotations, dict) else {}
        tag = str(told.get(_REF_NAME) or "")
        names = tuple(_names([told.get(_FULL_NAME), tag if "/" in tag or ":" in tag else ""]))
        yield Offer(names[:1], tag, descriptor.digest, descriptor.media_type, {}, genuine=True)


def _of_docker(files: Files, listed: object, most_layers: int) -> Iterator[Offer]:
    if not isinstance(listed, list):
        raise ContentRejected("manifest.json is no list of images")
    digests: dict[Part, Digest] = {}  # each file is hashed once, however often it is named
    for entry in listed[: MOST_IMAGES + 1]:
        if not isinstance(entry, dict) or not isinstance(entry.get("Layers"), list):
            raise ContentRejected("manifest.json has an image without layers")
        if len(entry["Layers"]) > most_layers:
            raise LimitExceeded(f"the image has {len(entry['Layers'])} layers, more than {most_layers}")
        tags = entry.get("RepoTags") or []
        names = tuple(_names(tags if isinstance(tags, list) else []))
        config = _file(files, entry.get("Config"))
        layers = [_file(files, layer) for layer in entry["Layers"]]
        digests.update({layer: _digest_of(layer) for layer in dict.fromkeys(layers) if layer not in digests})
        yield _made(names, config.read(DOCUMENT_BYTES), [(layer, digests[layer]) for layer in layers])


def _made(names: tuple[Reference, ...], config: bytes, layers: list[tuple[Part, Digest]]) -> Offer:
    """Make a manifest for a config and its layers."""
    blobs: dict[Digest, Part | bytes] = {Digest.of(config): config}
    descriptors = []
    for layer, digest in layers:
        blobs[digest] = layer
        descriptors.append(_descriptor(_layer_type(layer), digest, layer.size_bytes))
    document = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": _descriptor(media.OCI_CONFIG, Digest.of(config), len(config)),
        "layers": descriptors,
    }
    manifest = json.dumps(document).encode()
    blobs[Digest.of(manifest)] = manifest
    tag = str(names[0]) if names else ""
    return Offer(names, tag, Digest.of(manifest), media.OCI_MANIFEST, blobs, genuine=False)


def _descriptor(media_type: str, digest: Digest, size_bytes: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": size_bytes}


def _layer_type(layer: Part) -> str:
    start = layer.begins_with(4)
    if start.startswith(_GZIP):
        return f"{media.OCI_LAYER}+gzip"
    return f"{media.OCI_LAYER}+zstd" if start == _ZSTD else media.OCI_LAYER


def _digest_of(part: Part) -> Digest:
    running = Digest.of(b"").new_hash()
    for piece in part.pieces():
        running.update(piece)
    return Digest.finished(running)


def _file(files: Files, name: object) -> Part:
    part = files.find(name) if isinstance(name, str) and name else None
    if part is None:
        raise ContentRejected(f"manifest.json names the file {str(name)[:200]!a}, which is not there")
    return part


def _names(texts: Iterable[object]) -> Iterator[Reference]:
    for text in texts:
        if isinstance(text, str) and text:
            try:
                yield parse_reference(text)
            except InvalidReference:
                continue  # the tag alone, say: a name can be given

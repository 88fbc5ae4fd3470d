"""What containerd is told about an image: names, descriptors, labels. Values in, values out.

The labels `containerd.io/gc.ref.*` are what containerd's collector follows from an image record to its blobs and
snapshots (its docs/garbage-collection.md); `io.cri-containerd.image` is what its CRI plugin marks images with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from cri_shim.oci.media import OCI_INDEX
from rootfs.digest import chain_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.store.image import Image
    from rootfs.digest import Digest

OWNER: Final = "cri-shim.root"
"""The label of records that are ours; its value is the root of our store."""

LEASE_PREFIX: Final = "cri-shim-"
SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"

_MANAGED: Final = ("io.cri-containerd.image", "managed")
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot"
_CONTENT: Final = "containerd.io/gc.ref.content"


@dataclass(frozen=True, slots=True)
class Target:
    """What a record points at."""

    media_type: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """A name and what it stands for."""

    name: str
    target: Target


@dataclass(frozen=True, slots=True)
class Blob:
    """A document for containerd's content store, and what keeps alive what it refers to."""

    digest: str
    data: bytes
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Registration:
    """All that is registered about an image beside its layers. Blobs stand in the order they are written in."""

    blobs: tuple[Blob, ...]
    records: tuple[Record, ...]


def chain_of(image: Image) -> tuple[str, ...]:
    """Return the ChainID of each layer of *image*, bottom first."""
    return tuple(map(str, chain_ids([layer.diff_id for layer in image.layers])))


def names_of(image: Image) -> tuple[str, ...]:
    """Return the names of the records of *image*: its id first."""
    return str(image.id), *image.names


def targets_of(image: Image) -> frozenset[str]:
    """Return every digest that a record of *image* may point at: its indexes and its manifest."""
    return frozenset(str(document.digest) for document in image.documents if document.digest != image.id)


def registration_of(image: Image, documents: Mapping[Digest, bytes], snapshotter: str) -> Registration:
    """Return what to register about *image*, whose *documents* (manifest, config, index) are given."""
    order = _from_the_config_up(image)
    blobs = [Blob(str(image.id), documents[image.id], _config_labels(image, snapshotter))]
    for child, digest in pairwise(order):
        data = documents[digest]
        blobs.append(Blob(str(digest), data, _content_labels(data, child, is_manifest=digest == image.manifest)))
    targets = {str(digest): _target(image, digest, documents[digest]) for digest in order[1:]}
    records = tuple(Record(name, _target_of(name, image, targets)) for name in names_of(image))
    return Registration(tuple(blobs), records)


def labels_of(root: str) -> dict[str, str]:
    """Return the labels of a record that the store at *root* makes."""
    return dict((_MANAGED, (OWNER, root)))


def _from_the_config_up(image: Image) -> tuple[Digest, ...]:
    """The documents as they lie on the way from the name to the config, in reverse; the config is the last of them."""
    return tuple(document.digest for document in reversed(image.documents))


def _config_labels(image: Image, snapshotter: str) -> dict[str, str]:
    chain = chain_of(image)
    return {f"{_SNAPSHOT}.{snapshotter}": chain[-1]} if chain else {}


def _content_labels(data: bytes, child: Digest, *, is_manifest: bool) -> dict[str, str]:
    if is_manifest:
        return {f"{_CONTENT}.config": str(child)}
    entries = json.loads(data).get("manifests", [])
    place = next((place for place, entry in enumerate(entries) if entry.get("digest") == str(child)), 0)
    return {f"{_CONTENT}.m.{place}": str(child)}


def _target(image: Image, digest: Digest, data: bytes) -> Target:
    if digest == image.manifest:
        return Target(image.media_type, str(digest), len(data))
    return Target(json.loads(data).get("mediaType") or OCI_INDEX, str(digest), len(data))


def _target_of(name: str, image: Image, targets: Mapping[str, Target]) -> Target:
    """A name by digest points at that document while it is here, every other name at what was pulled last."""
    return targets.get(name.rpartition("@")[2], targets[str(image.target)])

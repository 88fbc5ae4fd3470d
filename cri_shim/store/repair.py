"""Looking at a root, and making its index anew, while no daemon runs.

Everything that the index knows about images stands a second time on the disk: each layer has a seal, each image a
record with its names beside its config. From these an index is made under another name and put in the place of the old
one, which is kept as `index.db.damaged`. A name that two records claim belongs to the image that was pulled last. What
credentials opened is not known any more. What was delivered for whom is, as far as an image still is what it was then:
its record has the repositories. A name proves none, for it may have come with an import, or with other blobs.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import StoreDamaged
from cri_shim.store.blobs import Blobs
from cri_shim.store.durable import sync_directory
from cri_shim.store.image import image_from, record_names
from cri_shim.store.index import REPAIR, Index
from cri_shim.store.provenance import Delivery
from cri_shim.store.recover import seal_of_directory
from rootfs.commit import ASIDE, found_in
from rootfs.failpoints import failpoint
from rootfs.layout import open_layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cri_shim.store.image import Image
    from cri_shim.store.layout import Layout
    from cri_shim.store.seal import Seal

_BESIDE: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. *problems* are sentences; with *index_damaged* the index has to be made anew."""

    images: int
    layers: int
    problems: tuple[str, ...]
    index_damaged: bool


def must_not_be_lost(layout: Layout) -> None:
    """Refuse a root that holds images and has no index: it would be taken for an empty one. Blocks on the disk.

    Raises:
        StoreDamaged: it is so.
    """
    empty = not layout.index.exists() or layout.index.stat().st_size == 0
    if empty and next(Blobs(layout).records(), None) is not None:
        raise StoreDamaged(f"{layout.index} is gone, or empty, and there are images; {REPAIR}")


def look(layout: Layout) -> Report:
    """Compare the index with what lies on the disk: every directory, every document and its digest.

    Raises:
        OSError: the root cannot be read.
    """
    seals, problems = _seals(layout)
    try:
        must_not_be_lost(layout)
        index = Index.open(layout.index)
        try:
            catalog = index.load()
        finally:
            index.close()
    except StoreDamaged as error:
        return Report(0, len(seals), (*problems, str(error)), index_damaged=True)
    lost = [f"layer {name} has no directory" for name in catalog.layers if name not in seals]
    wanting = [why for image in catalog.images.values() if (why := _wanting(layout, image, seals))]
    return Report(len(catalog.images), len(catalog.layers), (*problems, *lost, *wanting), index_damaged=False)


def repair(layout: Layout) -> Report:
    """Make the index anew from the seals and the records; what cannot be told any more is said in the report.

    Raises:
        OSError, NoSpace, StoreDamaged: it cannot be written; the old one is as it was, or lies beside as *.damaged.
    """
    seals, problems = _seals(layout)
    images, unusable = _images(layout, seals)
    new = layout.root / "index.db.new"
    for suffix in ("", *_BESIDE):
        with suppress(FileNotFoundError):
            os.unlink(f"{new}{suffix}")
    index = Index.open(new)
    try:
        index.fill(((seal.layer, seal.proof) for seal in seals.values()), images, _deliveries(images))
    finally:
        index.close()
    _put_in_place(layout, new)
    return Report(len(images), len(seals), (*problems, *unusable), index_damaged=False)


def _put_in_place(layout: Layout, new: Path) -> None:
    """Keep the old index, its log first of all: a new one must not meet the log of another."""
    for suffix in (*_BESIDE, ""):
        with suppress(FileNotFoundError):
            failpoint("repair.keep")
            os.rename(f"{layout.index}{suffix}", f"{layout.index}.damaged{suffix}")
    failpoint("repair.replace")
    os.rename(new, layout.index)
    sync_directory(layout.root)


def _seals(layout: Layout) -> tuple[dict[str, Seal], list[str]]:
    """Return the layers that stand there by name, and a sentence for each directory that is none."""
    seals: dict[str, Seal] = {}
    problems = []
    for directory in found_in(open_layout(os.path.abspath(layout.root))):
        if directory.name.startswith(ASIDE):
            continue  # it was replaced, and waits until nobody has it mounted
        seal = seal_of_directory(directory)
        if seal is not None:
            seals[seal.name] = seal
        else:
            problems.append(f"{layout.overlay / directory.name} is no whole layer")
    return seals, problems


def _images(layout: Layout, seals: dict[str, Seal]) -> tuple[list[Image], list[str]]:
    """Return the images that have a record and are whole, in the order of their pulls, and why others are not."""
    blobs, images, problems = Blobs(layout), [], []
    for path in blobs.records():
        try:
            record = path.read_bytes()
            image = image_from(record, record_names(record))
        except (OSError, StoreDamaged) as error:
            problems.append(f"{path}: {error}")
            continue
        why = _wanting(layout, image, seals)
        if why is None and path.name.startswith(image.id.hex):
            images.append(image)
        else:
            problems.append(why or f"{path} is the record of another image")
    return sorted(images, key=lambda image: image.pulled_at_ns), problems


def _wanting(layout: Layout, image: Image, seals: dict[str, Seal]) -> str | None:
    """Say what *image* lacks, or None when it is whole."""
    blobs = Blobs(layout)
    named = f"image {image.id} ({', '.join(image.names[:3])})"
    for name in image.layer_names:
        if name not in seals:
            return f"{named} lacks the layer {name}; pull it again"
    try:
        for document in image.documents:
            blobs.get(document.digest)
    except StoreDamaged as error:
        return f"{named}: {error}"
    return None


def _deliveries(images: Iterable[Image]) -> Iterator[Delivery]:
    """Yield who delivered what there is of *images*."""
    for image in images:
        for name in image.delivered:
            registry, _, repository = name.partition("/")
            for digest in image.arrived:
                yield Delivery(registry, repository, digest)

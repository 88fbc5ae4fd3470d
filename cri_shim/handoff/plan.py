"""What it takes to publish one image to containers-storage: entries of the chain, records, and files beside them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import HandOffFailed, StoreDamaged
from cri_shim.handoff.records import COMPRESSIONS, ImageRecord, LayerRecord, big_data_file, moment
from cri_shim.store.durable import sync_directory
from cri_shim.store.image import Usage
from cri_shim.store.seal import Seal, decode_seal
from rootfs.chain import ChainEntry
from rootfs.digest import Digest
from rootfs.failpoints import failpoint
from rootfs.overlay import link_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from cri_shim.handoff.records import Records
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be there.

    *big_data* tells for each file below `overlay-images/<image>/` where its bytes lie, *tar_splits* the same for each
    file below `overlay-layers/`.
    """

    entries: tuple[ChainEntry, ...]
    layers: tuple[LayerRecord, ...]
    image: ImageRecord
    big_data: Mapping[str, Path]
    tar_splits: Mapping[str, Path]

    @property
    def sources(self) -> dict[str, str]:
        """The directory of each layer's tree."""
        return {entry.name: entry.layer for entry in self.entries}


def plan_of(image: Image, store: Store, flat: str = "") -> Plan:
    """Return the plan for *image*, whose layers are all in the one called *flat* if there is one.

    Blocks on the disk: the seals of the layers are read.

    Raises:
        HandOffFailed: containers-storage cannot name such an image.
        StoreDamaged: the seal of a layer is gone or damaged.
    """
    _check(image)
    seals = [_seal(store.layout.overlay / layer.diff_id.hex / "layer.json") for layer in image.layers]
    entries = chain_of(image)
    if flat:
        seals = [_flat_seal(flat, sum(seal.diff_size_bytes for seal in seals))]
        entries = (ChainEntry(flat, flat, ()),)
    parents = ("", *(entry.name for entry in entries))
    layers = tuple(
        _layer_record(entry, parent, seal) for entry, parent, seal in zip(entries, parents, seals, strict=False)
    )
    tar_splits = {
        f"{entry.name}.tar-split.gz": store.layout.overlay / seal.name / "tar-split.gz"
        for entry, seal in zip(entries, seals, strict=True)
    }
    items = _items(image)
    record = ImageRecord(
        id=image.id.hex,
        digest=str(image.manifest),
        layer=entries[-1].name if entries else "",
        names=image.names,
        big_data_names=tuple(items),
        big_data_sizes={key: size for key, (_, size) in items.items()},
        big_data_digests={key: str(digest) for key, (digest, _) in items.items()},
        created=moment(image.created) or "1970-01-01T00:00:00Z",
    )
    big_data = {big_data_file(key): store.blobs.path(digest) for key, (digest, _) in items.items()}
    return Plan(entries, layers, record, big_data, tar_splits)


def chain_of(image: Image) -> tuple[ChainEntry, ...]:
    """Return the entries of the chain of *image*, bottom first.

    They have the names that containers-storage itself gives to these layers, so that a runtime that pulls an image
    finds those that are here; only a lowest layer in a form of its own begins a chain of another name.
    """
    entries: list[ChainEntry] = []
    for layer in image.layers:
        name = layer.name
        if entries:
            name = hashlib.sha256(f"{entries[-1].name}+{layer.diff_id.hex}".encode("ascii")).hexdigest()
        below = tuple(entry.name for entry in reversed(entries))
        entries.append(ChainEntry(name, layer.name, below))
    return tuple(entries)


def put_files(root: Path, plan: Plan) -> None:
    """Put the files of *plan* where runtimes look for them: second names of what lies in the store.

    Raises:
        OSError: the disk refused.
    """
    directory = root / "overlay-images" / plan.image.id
    directory.mkdir(mode=0o700, exist_ok=True)
    for name, source in plan.big_data.items():
        _give_name(source, directory / name)
    sync_directory(directory)
    for name, source in plan.tar_splits.items():
        with contextlib.suppress(FileNotFoundError):  # a layer from before there were any
            _give_name(source, root / "overlay-layers" / name)


def has_files(root: Path, records: Records, image: str) -> bool:
    """Tell whether everything that runtimes open of *image* beside the trees of its layers is there."""
    record, overlay = records.images[image], root / "overlay"
    wanted: list[Path] = []
    for layer in records.chain(image):
        wanted.append(overlay / "l" / link_name(layer))
        if records.layers[layer].parent:
            wanted.append(overlay / layer / "lower")
        if records.sources[layer] != layer:
            wanted.append(overlay / layer / "link")
    try:
        for path in wanted:
            path.stat()
        big_data = root / "overlay-images" / image
        return all(
            (big_data / big_data_file(key)).stat().st_size == size for key, size in record.big_data_sizes.items()
        )
    except OSError:
        return False


def take_files(root: Path, images: Iterable[str], layers: Iterable[str]) -> None:
    """Remove the files of images and layers whose records are gone."""
    for image in images:
        shutil.rmtree(root / "overlay-images" / image, ignore_errors=True)
    for layer in layers:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(root / "overlay-layers" / f"{layer}.tar-split.gz")


def _check(image: Image) -> None:
    digests: tuple[Digest, ...] = (image.id, *(layer.diff_id for layer in image.layers))
    if any(digest.algorithm != "sha256" for digest in digests):
        raise HandOffFailed("containers-storage takes sha256 for the ids of images and layers, and this one has others")


def _seal(path: Path) -> Seal:
    try:
        return decode_seal(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreDamaged(f"{path} is gone; remove the image and pull it again") from error


def _flat_seal(name: str, size_bytes: int) -> Seal:
    """Return what the records say of a layer that no registry has: no digest of a tar, and none of a blob."""
    return Seal(name, Digest("sha256", name), "flat", Usage(0, 0), ghosts=False, implied=0, diff_size_bytes=size_bytes)


def _layer_record(entry: ChainEntry, parent: str, seal: Seal) -> LayerRecord:
    return LayerRecord(
        id=entry.name,
        parent=parent,
        diff_digest=str(seal.diff_id),
        diff_size=seal.diff_size_bytes,
        compressed_diff_digest=seal.blob,
        compressed_size=seal.blob_size_bytes,
        compression=COMPRESSIONS.get(seal.compression, 0),
    )


def _items(image: Image) -> dict[str, tuple[Digest, int]]:
    """Return the big data of *image*: its manifest, that again by digest as every index above it, and the config."""
    *manifests, config = image.documents
    items = {f"manifest-{document.digest}": (document.digest, document.size_bytes) for document in manifests}
    items["manifest"] = items[f"manifest-{image.manifest}"]
    items[str(config.digest)] = (config.digest, config.size_bytes)
    return items


def _give_name(source: Path, target: Path) -> None:
    """Make *target* a name of *source*, or a copy of it where no further name can be."""
    if target.exists() and os.path.samefile(source, target):
        return
    new = target.with_name(f".{target.name[:100]}.{os.urandom(4).hex()}")
    try:
        os.link(source, new)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
            raise
        shutil.copyfile(source, new)
    failpoint("published.file.rename")
    os.rename(new, target)

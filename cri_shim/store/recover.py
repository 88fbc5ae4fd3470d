"""What start-up makes of what it finds: a plan, decided without touching the disk.

The index and the directories can disagree after a kill or a power cut, in two ways. A directory without a row is a
layer whose row was not written yet: its seal tells what it is, so it is adopted and waits under a lease for the next
pull; without a readable seal it goes to the trash. A row without a directory is a layer that somebody deleted: the
images that stand on it are not whole any more and are not listed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import StoreDamaged
from cri_shim.store.seal import Seal, decode_seal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.store.catalog import Catalog, Layer
    from cri_shim.store.provenance import Proof
    from rootfs.commit import Found
    from rootfs.digest import Digest


_OURS = re.compile(r"[0-9a-f]{64}")  # a directory of another name is not ours to remove: lost+found, say


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: layers to adopt, directories to trash, rows to drop, images to drop, documents to delete."""

    adopt: tuple[tuple[Layer, Proof | None], ...]
    trash: tuple[str, ...]
    lost_layers: tuple[str, ...]
    lost_images: tuple[Digest, ...]
    stray_documents: tuple[Digest, ...]

    @property
    def changes(self) -> bool:
        """Whether the index has to be changed."""
        return bool(self.adopt or self.lost_layers or self.lost_images)


def plan_recovery(catalog: Catalog, found: Iterable[Found], documents: Iterable[Digest]) -> Plan:
    """Compare *catalog* with the layer directories and documents that lie on the disk."""
    adopt: list[tuple[Layer, Proof | None]] = []
    trash: list[str] = []
    present: set[str] = set()
    for directory in found:
        seal = seal_of_directory(directory)
        if seal is None:
            if _OURS.fullmatch(directory.name):
                trash.append(directory.name)
            continue
        present.add(seal.name)
        if seal.name not in catalog.layers:
            adopt.append((seal.layer, seal.proof))
    on_disk = set(documents)
    lost = tuple(name for name in catalog.layers if name not in present)
    whole = {
        image.id
        for image in catalog.images.values()
        if present.issuperset(image.layer_names) and on_disk.issuperset(doc.digest for doc in image.documents)
    }
    kept = {doc.digest for image in catalog.images.values() if image.id in whole for doc in image.documents}
    return Plan(
        adopt=tuple(adopt),
        trash=tuple(trash),
        lost_layers=lost,
        lost_images=tuple(digest for digest in catalog.images if digest not in whole),
        stray_documents=tuple(digest for digest in on_disk if digest not in kept),
    )


def seal_of_directory(directory: Found) -> Seal | None:
    """Return the seal of what stands in `overlay/`, None where it is no whole layer."""
    if directory.seal is None:
        return None
    try:
        seal = decode_seal(directory.seal)
    except StoreDamaged:
        return None
    return seal if seal.name == directory.name else None

"""Whether what an image stands on is there: directories and documents, by name and size. Content is the scrubber's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.store.blobs import Blobs
from cri_shim.store.references import directories

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.store.image import Image
    from cri_shim.store.layout import Layout

_PARTS = ("diff", "layer.json", "link")


@dataclass(frozen=True, slots=True)
class Lost:
    """What is not there: layer directories, those of them of which something is left, and whether any document is."""

    layers: frozenset[str]
    torn: frozenset[str]
    documents: bool


def look_for(layout: Layout, image: Image) -> Lost:
    """Look for everything that *image* stands on. Blocks on the disk."""
    places = {name: layout.overlay / name for name in directories(image)}
    lost = frozenset(name for name, place in places.items() if not all(os.path.exists(place / part) for part in _PARTS))
    blobs = Blobs(layout)
    documents = any(_size(blobs.path(doc.digest)) != doc.size_bytes for doc in image.documents)
    return Lost(lost, frozenset(name for name in lost if os.path.lexists(places[name])), documents)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1

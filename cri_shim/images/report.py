"""What a look at the whole root has found, as the admin socket and the command line tell it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.store.references import directories

if TYPE_CHECKING:
    from cri_shim.images.examine import Examined, Flaw
    from cri_shim.store.catalog import Catalog, Layer
    from cri_shim.store.image import Image
    from rootfs.digest import Digest

MOST_ROWS = 1000
"""How many flaws are told one by one."""


@dataclass(frozen=True, slots=True)
class Row:
    """A flaw, with the names of images that stand on what has it; *layer* is "" for a document."""

    images: tuple[str, ...]
    layer: str
    flaw: Flaw


@dataclass(slots=True)
class Report:
    """One look, while it goes on and after. *left* is what is damaged still, with the reason; *troubles* are errors."""

    content: bool
    things: int = 0
    done: int = 0
    read_bytes: int = 0
    rows: list[Row] = field(default_factory=list)
    more: int = 0
    layers: dict[str, str] = field(default_factory=dict)
    images: dict[Digest, str] = field(default_factory=dict)
    records: set[Digest] = field(default_factory=set)
    uncompared: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    repaired: int = 0
    left: dict[str, str] = field(default_factory=dict)
    now: str = ""
    ended: bool = False
    begun_s: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def damaged(self) -> bool:
        """Whether anything was found."""
        return bool(self.layers or self.images or self.records)

    def take_layer(self, layer: Layer, found: Examined, catalog: Catalog) -> None:
        """Note what was found in *layer*."""
        self.read_bytes += found.read_bytes
        if not found.compared:
            self.uncompared.append(layer.name)
        if found.flaws:
            self.layers[layer.name] = str(found.flaws[0])
            self._rows(images_on(layer, catalog), layer.name, found.flaws, found.more)

    def take_documents(self, image: Image, flaws: tuple[Flaw, ...], *, beyond_the_record: bool) -> None:
        """Note what was found of the documents of *image*; the index knows its record and no more."""
        if not flaws:
            return
        if beyond_the_record:
            self.images[image.id] = str(flaws[0])
        else:
            self.records.add(image.id)
        self._rows(named(image), "", flaws, 0)

    def _rows(self, images: tuple[str, ...], layer: str, flaws: tuple[Flaw, ...], more: int) -> None:
        room = max(0, MOST_ROWS - len(self.rows))
        self.rows += [Row(images, layer, flaw) for flaw in flaws[:room]]
        self.more += more + max(0, len(flaws) - room)

    def leave_all(self, catalog: Catalog) -> None:
        """Note that nothing was repaired."""
        for image in catalog.ordered():
            if image.id in self.images or image.id in self.records or not directories(image).isdisjoint(self.layers):
                self.left[named(image)[0]] = "damaged; --repair pulls it again, as does the next pull of it"
        for layer in self.layers.keys() & catalog.idle():
            self.left[layer] = "damaged; no image stands on it, and it goes by itself"

    def end(self) -> None:
        """Note that it is over."""
        self.ended, self.now = True, ""
        self.seconds = time.monotonic() - self.begun_s

    def as_json(self) -> dict[str, object]:
        """Return it as the admin socket tells it."""
        return {
            "state": "done" if self.ended else "running",
            "depth": "full" if self.content else "quick",
            "things": self.things,
            "done": self.done,
            "now": self.now,
            "read_bytes": self.read_bytes,
            "seconds": round(self.seconds if self.ended else time.monotonic() - self.begun_s, 3),
            "damages": [
                {"images": row.images, "layer": row.layer, "path": row.flaw.path, "what": row.flaw.what}
                for row in self.rows
            ],
            "more": self.more,
            "damaged_layers": len(self.layers),
            "damaged_images": len(self.images) + len(self.records),
            "repaired": self.repaired,
            "left": dict(self.left),
            "uncompared": list(self.uncompared),
            "troubles": list(self.troubles),
        }


def named(image: Image) -> tuple[str, ...]:
    """Return what to call *image*: three of its names, or its id."""
    return image.names[:3] or (str(image.id),)


def images_on(layer: Layer, catalog: Catalog) -> tuple[str, ...]:
    """Return what to call three of the images that stand on *layer*."""
    plain = layer.diff_id.hex
    on_it = (
        named(image)[0]
        for image in catalog.ordered()
        if any(layer.name == one.name or (layer.name == plain and one.diff_id.hex == plain) for one in image.layers)
    )
    return tuple(name for name, _ in zip(on_it, range(3), strict=False))

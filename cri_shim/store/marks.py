"""What is known to be damaged, and why: on the disk, so that a restart does not take it for whole again.

A mark goes when the thing has been put in place anew, or is gone. Of an image whose layers were damaged it is kept as
well that the runtimes may have links to what was, until they have been given it anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.store.durable import write_durably
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cri_shim.store.layout import Layout

NAME: Final = "damaged.json"
LONGEST_WHY: Final = 500


class _Fields(msgspec.Struct):
    layers: dict[str, str] = {}
    images: dict[str, str] = {}
    given: list[str] = []


@dataclass(slots=True)
class Marks:
    """The marks of one root. *layers* and *images* (of a damaged document) say why; *given*: see above."""

    path: Path
    layers: dict[str, str] = field(default_factory=dict)
    images: dict[Digest, str] = field(default_factory=dict)
    given: set[Digest] = field(default_factory=set)

    @classmethod
    def read(cls, layout: Layout) -> Marks:
        """Read them. Blocks on the disk. Marks that cannot be read are none: the next look finds the damage again."""
        path = layout.root / NAME
        try:
            fields = msgspec.json.decode(path.read_bytes(), type=_Fields)
            images = {Digest.parse(one): why for one, why in fields.images.items()}
            return cls(path, fields.layers, images, set(map(Digest.parse, fields.given)))
        except (OSError, msgspec.DecodeError, RootfsError):
            return cls(path)

    def add(self, layers: Mapping[str, str], images: Mapping[Digest, str], given: Collection[Digest]) -> None:
        """Mark more."""
        self.layers.update((name, why[:LONGEST_WHY]) for name, why in layers.items())
        self.images.update((image, why[:LONGEST_WHY]) for image, why in images.items())
        self.given.update(given)

    def keep_to(self, layers: Collection[str], images: Collection[Digest]) -> bool:
        """Drop the marks of what is not among *layers* and *images*; tell whether there were any."""
        before = (len(self.layers), len(self.images), len(self.given))
        self.layers = {name: why for name, why in self.layers.items() if name in layers}
        self.images = {image: why for image, why in self.images.items() if image in images}
        self.given = {image for image in self.given if image in images}
        return before != (len(self.layers), len(self.images), len(self.given))

    def encoded(self) -> bytes:
        """Return what the file is to hold, nothing for no file."""
        if not (self.layers or self.images or self.given):
            return b""
        images = {str(image): why for image, why in self.images.items()}
        return msgspec.json.encode(_Fields(self.layers, images, sorted(map(str, self.given))))

    def write(self, data: bytes) -> None:
        """Keep *data*, from `encoded`. Blocks on the disk.

        Raises:
            OSError: the disk refused.
        """
        if data:
            write_durably(self.path, data)
        else:
            self.path.unlink(missing_ok=True)

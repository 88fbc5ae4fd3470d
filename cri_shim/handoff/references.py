"""What the records of runtimes still name: layers of ours below their containers, images that containers are of.

A container that is stopped shows in no mount; CRI-O's check, and its repair, would act on a parent that is missing.
Read as they lie there, without a lock: the library replaces its files by renames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LARGEST_BYTES = 256 << 20


class _Entry(msgspec.Struct):
    """An object of any of the files; what is not asked for is passed over."""

    parent: str = ""
    layer: str = ""
    image: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class References:
    """Ids of *layers* and *images* that records name."""

    layers: frozenset[str]
    images: frozenset[str]


def read_references(roots: Iterable[Path]) -> References:
    """Read the records below each of *roots*, the graph roots of runtimes; a root that is not there names nothing.

    Raises:
        OSError, ValueError: records are there and cannot be read.
    """
    layers: set[str] = set()
    images: set[str] = set()
    for root in roots:
        own_layers = _read_all(root / "overlay-layers", "layers", "volatile-layers")
        own_images = _read_all(root / "overlay-images", "images")
        containers = _read_all(root / "overlay-containers", "containers", "volatile-containers")
        # What the runtime has itself, it does not need from us; another runtime, with another root, still may.
        named = {entry.parent for entry in own_layers} | {entry.layer for entry in own_images}
        layers |= named - {entry.id for entry in own_layers}
        images |= {entry.image for entry in containers} - {entry.id for entry in own_images}
    return References(frozenset(layers - {""}), frozenset(images - {""}))


def _read_all(directory: Path, *names: str) -> list[_Entry]:
    return [entry for name in names for entry in _read(directory / f"{name}.json")]


def _read(path: Path) -> list[_Entry]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return []
    if len(data) > _LARGEST_BYTES:
        raise ValueError(f"{path} is larger than {_LARGEST_BYTES} bytes")
    if not data.strip():
        return []
    return msgspec.json.decode(data, type=list[_Entry] | None) or []

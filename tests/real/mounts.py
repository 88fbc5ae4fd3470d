"""Mounting layers as a runtime does, and reading back what a mount is made of."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real.programs import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def merged(layers: Sequence[Path], at: Path) -> Iterator[Path]:
    """The merged view of *layers*, bottom first, mounted read-only at *at*.

    Overlayfs wants two lower directories when there is no upper one: a single layer stands for itself.
    """
    if len(layers) == 1:
        yield layers[0]
        return
    at.mkdir()
    lowers = ":".join(os.fspath(layer) for layer in reversed(layers))
    run("mount", "-t", "overlay", "-o", f"ro,lowerdir={lowers}", "overlay", at)
    try:
        yield at
    finally:
        run("umount", at)


def lowers_of(at: Path) -> list[Path]:
    """The layers of the mount at *at*, bottom first: an overlay's lower directories, or the source of a bind mount."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if fields[4] != os.fspath(at):
            continue
        options = after.split(" ")[2].split(",")
        lowers = [option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")]
        found = [*reversed(lowers[0].split(":"))] if lowers else [_source(fields[2], fields[3])]
        return [Path(lower) for lower in found]
    raise AssertionError(f"{at} is not mounted")


def _source(device: str, below: str) -> str:
    """Where a bind mount's directory is: the place of the whole filesystem, and the path below it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[2] == device and fields[3] == "/":
            return os.path.join(fields[4], below.lstrip("/"))
    raise AssertionError(f"the filesystem {device} is not mounted whole")

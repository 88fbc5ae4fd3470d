"""Documents on the disk: kept, or not believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_shim.errors import StoreDamaged
from cri_shim.store.blobs import Blobs
from cri_shim.store.layout import Layout
from rootfs.digest import Digest
from rootfs.failpoints import arm

DATA = b"a manifest"
DIGEST = Digest.of(DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    layout = Layout(tmp_path / "root")
    layout.prepare()
    yield Blobs(layout)
    arm("")


def written(tmp_path: Path, blobs: Blobs) -> list[str]:
    """Keep DATA and return the failpoints that were come by."""
    trace = tmp_path / "trace"
    trace.write_bytes(b"")
    arm(f"trace:{trace}")
    blobs.put(DIGEST, DATA)
    return [line.split()[0] for line in trace.read_text().splitlines()]


@pytest.mark.parametrize("point", ["file.sync", "file.rename", "directory.sync"])
def test_what_the_disk_refused_once_is_not_called_kept_the_next_time(tmp_path: Path, blobs: Blobs, point: str) -> None:
    arm(f"{point}=errno:EIO")
    with pytest.raises(OSError, match="Input/output"):
        blobs.put(DIGEST, DATA)
    assert written(tmp_path, blobs) == ["file.sync", "file.rename", "directory.sync"]
    assert blobs.get(DIGEST) == DATA


def test_what_another_is_just_writing_is_not_called_kept(tmp_path: Path, blobs: Blobs) -> None:
    blobs.path(DIGEST).write_bytes(DATA)  # renamed, and its directory not synced so far
    assert written(tmp_path, blobs) == ["file.sync", "file.rename", "directory.sync"]


def test_what_is_there_and_is_something_else_is_said_to_be(blobs: Blobs) -> None:
    blobs.path(DIGEST).write_bytes(DATA[:-1])
    with pytest.raises(StoreDamaged, match="does not match"):
        blobs.get(DIGEST)
    blobs.put(DIGEST, DATA)
    assert blobs.get(DIGEST) == DATA

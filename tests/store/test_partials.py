"""What is kept of pulls that were interrupted: taken up at start, bounded, counted."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from cri_shim.errors import NoSpace
from cri_shim.store.image import Usage
from cri_shim.store.ingest import Arrival
from cri_shim.store.partials import Keeping, Partials
from rootfs.digest import Digest

MIB = 1 << 20
HERE = Usage(2 * MIB, 2)


class Disk:
    """Does at once what a store does in threads."""

    async def disk(self, work):
        return work()

    async def made(self, work, undo):
        return work()


DISK = Disk()


def digest(seed: int) -> Digest:
    return Digest.of(bytes([seed]))


def partials(path: Path, **keeping: int) -> Partials:
    found = Partials(path, Keeping(**{"bytes": 100 * MIB, "seconds": 1000, **keeping}), None)
    found.find()
    return found


def name(seed: int, origin: str = "r/app") -> str:
    return f"sha256-{digest(seed).hex}.{hashlib.blake2s(origin.encode(), digest_size=8).hexdigest()}"


async def left(kept: Partials, seed: int, mebibytes: int = 2, origin: str = "r/app") -> None:
    ingest = await kept.open(DISK, digest(seed), Arrival(100 * MIB, origin))
    ingest.append(bytes(mebibytes * MIB))
    await kept.close(DISK, ingest, keep=True)


async def test_what_was_left_counts_and_is_gone_on_with(tmp_path: Path) -> None:
    kept = partials(tmp_path)
    await left(kept, 1)
    assert kept.usage == HERE
    again = partials(tmp_path)
    assert again.usage == HERE
    ingest = await again.open(DISK, digest(1), Arrival(100 * MIB, "r/app"))
    assert (ingest.resumed_bytes, again.usage) == (2 * MIB, Usage(0, 0))
    await again.close(DISK, ingest, keep=False)
    assert (list(tmp_path.iterdir()), again.usage) == ([], Usage(0, 0))


async def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    kept = partials(tmp_path, bytes=5 * MIB)
    for seed in (1, 2, 3):
        await left(kept, seed)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".map"} == {name(seed) for seed in (2, 3)}
    assert partials(tmp_path, bytes=3 * MIB).usage == HERE


@pytest.mark.parametrize(("age_s", "stays"), [(900, True), (1100, False), (-10 * 365 * 86400, True)])
async def test_the_old_go_at_the_start_and_later(tmp_path: Path, age_s: int, stays) -> None:
    await left(partials(tmp_path), 1)
    at = time.time() - age_s
    os.utime(tmp_path / name(1), (at, at))
    assert partials(tmp_path).usage == (HERE if stays else Usage(0, 0))
    assert bool(list(tmp_path.iterdir())) is stays


@pytest.mark.parametrize("off", [{"bytes": 0}, {"seconds": 0}])
async def test_nothing_is_kept_when_that_is_wanted(tmp_path: Path, off) -> None:
    kept = partials(tmp_path, **off)
    await left(kept, 1)
    assert (list(tmp_path.iterdir()), kept.usage) == ([], Usage(0, 0))


async def test_everything_goes_when_the_disk_is_full(tmp_path: Path) -> None:
    kept = partials(tmp_path)
    await left(kept, 1)
    await left(kept, 2)
    await kept.prune(DISK, everything=True)
    assert (list(tmp_path.iterdir()), kept.usage) == ([], Usage(0, 0))


def test_what_is_of_no_use_is_deleted_and_what_is_not_ours_is_not(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    stem = f"sha256-{digest(1).hex}"
    for one in (name(1), f"{name(2)}.map", stem, f"{stem}.map", f"{stem}.{'A' * 16}", "tmp", "tmp.map"):
        (tmp_path / one).write_bytes(b"x" * 5000)
    assert partials(tmp_path).usage == Usage(0, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


async def test_a_blob_that_cannot_be_opened_still_waits(tmp_path: Path) -> None:
    class Full(Disk):
        async def made(self, work, undo):
            raise NoSpace("full")

    kept = partials(tmp_path)
    await left(kept, 1)
    with pytest.raises(NoSpace):
        await kept.open(Full(), digest(1), Arrival(100 * MIB, "r/app"))
    assert kept.usage == HERE


async def test_a_repository_does_not_touch_what_another_has_left(tmp_path: Path) -> None:
    kept = partials(tmp_path)
    await left(kept, 1)
    await left(kept, 1, 3, origin="evil/app")
    ingest = await kept.open(DISK, digest(1), Arrival(100 * MIB, "r/app"))
    assert (ingest.resumed_bytes, kept.usage) == (2 * MIB, Usage(3 * MIB, 2))
    await kept.close(DISK, ingest, keep=True)
    again = partials(tmp_path)
    assert again.usage == Usage(5 * MIB, 4)
    await left(again, 2)
    await again.forget(DISK, [digest(1)])
    assert again.usage == HERE
    assert {path.name for path in tmp_path.iterdir()} == {name(2), f"{name(2)}.map"}


async def test_what_begins_with_a_hole_waits_too(tmp_path: Path) -> None:
    kept = partials(tmp_path)
    ingest = await kept.open(DISK, digest(1), Arrival(100 * MIB, "r/app"))
    ingest.put(MIB, bytes(2 * MIB))
    await kept.close(DISK, ingest, keep=True)
    again = partials(tmp_path)
    ingest = await again.open(DISK, digest(1), Arrival(100 * MIB, "r/app"))
    assert (ingest.resumed_bytes, ingest.position_bytes) == (2 * MIB, 0)
    await again.close(DISK, ingest, keep=False)

from __future__ import annotations

import collections
import os
import struct
import threading
from pathlib import Path

import pytest

from cri_shim.errors import Cancelled, StoreDamaged
from cri_shim.executor import DaemonExecutor
from cri_shim.store.ingest import AHEAD_BYTES, Arrival, Ingest
from cri_shim.store.rangemap import MapFile, path_of_map
from rootfs.failpoints import arm

RECORD = struct.Struct("<BQ")


def records(fd: int) -> list[tuple[int, int]]:
    os.set_blocking(fd, False)
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    return list(RECORD.iter_unpack(data))


def test_a_follower_sees_what_was_there_and_what_comes(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(10))
    ingest.append(b"hello")
    blob, marks, generation = ingest.follow()
    assert (records(marks), generation) == ([(1, 5)], 0)
    ingest.append(memoryview(b"world"))
    ingest.finish()
    assert records(marks) == [(1, 10), (2, 10)]
    assert os.pread(blob, 20, 0) == b"helloworld"
    os.close(blob)
    os.close(marks)
    ingest.close()
    assert not (tmp_path / "blob").exists()


def test_a_restart_sends_followers_away_and_makes_a_new_generation(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(10))
    ingest.append(b"wrong")
    blob, marks, _ = ingest.follow()
    ingest.restart()
    assert records(marks)[-1][0] == 3
    assert (ingest.position_bytes, ingest.generation) == (0, 1)
    os.close(blob)
    os.close(marks)
    ingest.close()


def test_a_restart_before_the_first_byte_is_nothing(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(10))
    ingest.restart()
    assert ingest.generation == 0
    ingest.close()


def test_a_follower_of_a_complete_blob_is_told_so_at_once(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(3))
    ingest.append(b"abc")
    ingest.finish()
    blob, marks, _ = ingest.follow()
    assert records(marks)[-1] == (2, 3)
    os.close(blob)
    os.close(marks)
    ingest.close()


def test_nothing_can_be_done_after_the_close(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(3))
    ingest.close()
    ingest.close()
    for call in (lambda: ingest.append(b"x"), ingest.follow, ingest.finish, ingest.restart):
        with pytest.raises(Cancelled):
            call()
    ingest_descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)]
    assert not [target for target in ingest_descriptors if str(tmp_path) in target]


def _open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


# What is kept for the next one

MIB = 1 << 20


def ingest_of(path: Path, size: int = 100 * MIB, **more) -> Ingest:
    return Ingest(path / "blob", Arrival(size, **{"origin": "r.example/app", **more}))


def filled(path: Path, count: int, **more) -> Ingest:
    ingest = ingest_of(path, **more)
    for _ in range(count):
        ingest.append(bytes([7]) * MIB)
    return ingest


def test_what_was_kept_is_gone_on_with(tmp_path: Path) -> None:
    ingest = filled(tmp_path, 3)
    ingest.vouch("r.example", '"tag"')
    assert ingest.close(keep=True) == 3 * MIB
    told = []
    again = ingest_of(tmp_path, arriving=lambda: told.append(1))
    assert (again.position_bytes, again.resumed_bytes, told) == (3 * MIB, 3 * MIB, [1])
    assert (again.validator_of("r.example"), again.validator_of("other.example")) == ('"tag"', "")
    again.append(b"more")
    assert again.read_at(3 * MIB - 2, 100) == b"\7\7more"
    blob, marks, _ = again.follow()
    assert records(marks) == [(1, 3 * MIB + 4)]
    os.close(blob)
    os.close(marks)
    assert again.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_little_is_not_kept(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path)
    ingest.append(bytes(MIB - 1))
    assert ingest.close(keep=True) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"size": 99 * MIB}, {"origin": "r.example/other"}])
def test_nobody_else_goes_on_with_it(tmp_path: Path, other) -> None:
    filled(tmp_path, 2).close(keep=True)
    ingest = ingest_of(tmp_path, **other)
    assert (ingest.position_bytes, (tmp_path / "blob").stat().st_size) == (0, 0)
    ingest.close(keep=True)


def test_a_length_is_not_trusted_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(3 * MIB))
    assert ingest_of(tmp_path).position_bytes == 0


def test_a_record_is_not_trusted_without_the_length(tmp_path: Path) -> None:
    filled(tmp_path, 3).close(keep=True)
    os.truncate(tmp_path / "blob", 2 * MIB)
    assert ingest_of(tmp_path).position_bytes == 0


@pytest.mark.parametrize("threads", [None, DaemonExecutor("ingest", 1)])
def test_an_interruption_costs_a_chunk_at_most(tmp_path: Path, threads) -> None:
    ingest = ingest_of(tmp_path, threads=threads)
    for count in range(1, 50):
        ingest.append(bytes(MIB))
        known = MapFile(path_of_map(str(tmp_path / "blob"))).read()
        assert count * MIB - (known.prefix_bytes if known else 0) <= AHEAD_BYTES
    ingest.close()


def test_a_restart_voids_what_was_recorded(tmp_path: Path) -> None:
    ingest = filled(tmp_path, 20)
    ingest.restart()
    ingest.append(b"other")
    assert MapFile(path_of_map(str(tmp_path / "blob"))).read().ranges == ()
    ingest.close()


@pytest.mark.parametrize("point", ["ingest.data.sync", "ingest.map.sync", "directory.sync"])
@pytest.mark.parametrize("threads", [None, DaemonExecutor("ingest", 1)])
def test_a_sync_that_failed_is_never_called_good(tmp_path: Path, point, threads) -> None:
    ingest = ingest_of(tmp_path, threads=threads)
    arm(f"{point}=errno:EIO")
    try:
        with pytest.raises(StoreDamaged, match="Input/output"):
            collections.deque(ingest.append(bytes(MIB)) for _ in range(40))
    finally:
        arm("")
    assert ingest.close(keep=True) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_follower_comes_while_a_write_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = ingest_of(tmp_path)
    ingest.append(b"hello")
    reached, go, real = threading.Event(), threading.Event(), os.pwrite

    def hangs(*arguments: object) -> int:
        reached.set()
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", hangs)
    writer = threading.Thread(target=ingest.append, args=(b"world",))
    writer.start()
    assert reached.wait(20)
    blob, marks, _ = ingest.follow()
    assert records(marks) == [(1, 5)]
    assert ingest.read_at(0, 10) == b"hello"
    go.set()
    writer.join(20)
    assert records(marks) == [(1, 10)]
    os.close(blob)
    os.close(marks)
    ingest.close()

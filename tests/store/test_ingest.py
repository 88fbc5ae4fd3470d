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


# Several connections fill it


def test_the_watermark_is_where_the_first_hole_begins(tmp_path: Path) -> None:
    told: list[int] = []
    ingest = Ingest(tmp_path / "blob", Arrival(12, arriving=lambda: told.append(1)))
    blob, marks, _ = ingest.follow()
    assert ingest.put(8, b"IJKL") == 4
    assert (ingest.put(4, b"EF"), records(marks), told) == (2, [], [])
    assert ingest.put(0, b"ABC") == 3
    assert (records(marks), told) == ([(1, 3)], [1])
    assert ingest.missing(0, 12) == ((3, 4), (6, 8))
    assert (ingest.position_bytes, ingest.present_bytes) == (3, 9)
    assert ingest.put(3, b"D") == 1
    assert records(marks) == [(1, 6)]
    assert ingest.put(6, b"GH") == 2
    assert records(marks) == [(1, 12)]
    assert os.pread(blob, 20, 0) == b"ABCDEFGHIJKL"
    os.close(blob)
    os.close(marks)
    ingest.close()


def test_what_is_here_is_not_written_again(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", Arrival(10))
    ingest.put(0, b"abc")
    ingest.put(5, b"fg")
    assert ingest.put(0, b"0123456789") == 5
    assert ingest.read_at(0, 10) == b"abc34fg789"
    assert ingest.put(0, b"0123456789") == 0
    ingest.close()


def test_holes_are_kept_and_filled_by_the_next_one(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path, size=8 * MIB)
    for mebibyte in (1, 2, 6):
        ingest.put(mebibyte * MIB, bytes([mebibyte]) * MIB)
    assert ingest.close(keep=True) == 3 * MIB
    again = ingest_of(tmp_path, size=8 * MIB)
    assert (again.position_bytes, again.resumed_bytes) == (0, 3 * MIB)
    assert again.missing(0, 8 * MIB) == ((0, MIB), (3 * MIB, 6 * MIB), (7 * MIB, 8 * MIB))
    again.put(0, b"".join(bytes([one + 10]) * MIB for one in range(8)))
    assert [again.read_at(one * MIB, 1)[0] for one in range(8)] == [10, 1, 2, 13, 14, 15, 6, 17]
    again.close()


def test_of_a_file_that_was_cut_the_rest_counts(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path)
    ingest.put(0, bytes(2 * MIB))
    ingest.put(4 * MIB, bytes(2 * MIB))
    ingest.close(keep=True)
    os.truncate(tmp_path / "blob", 5 * MIB)
    again = ingest_of(tmp_path)
    assert (again.resumed_bytes, (tmp_path / "blob").stat().st_size) == (2 * MIB, 2 * MIB)
    again.close()


def test_a_restart_voids_the_parts_behind_a_hole_too(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path)
    ingest.put(4 * MIB, bytes(8 * MIB))
    ingest.restart()
    assert (ingest.present_bytes, ingest.generation, ingest.missing(0, 9)) == (0, 1, ((0, 9),))
    assert MapFile(path_of_map(str(tmp_path / "blob"))).read().ranges == ()
    ingest.close()


@pytest.mark.parametrize("threads", [None, DaemonExecutor("ingest", 1)])
def test_many_fill_it_at_once(tmp_path: Path, threads) -> None:
    """None is further ahead of the record than all together may be, and the piece that it has in hand."""
    ingest, writers, parts = ingest_of(tmp_path, size=48 * MIB, threads=threads), 6, 8
    data = [bytes([one]) * MIB for one in range(48)]
    ahead: list[int] = []

    def write(writer: int) -> None:
        for part in range(writer * parts, (writer + 1) * parts):
            ingest.put(part * MIB, data[part])
            present = ingest.present_bytes
            known = MapFile(path_of_map(str(tmp_path / "blob"))).read()
            ahead.append(present - (known.present_bytes if known else 0))

    running = [threading.Thread(target=write, args=(one,)) for one in range(writers)]
    for one in running:
        one.start()
    for one in running:
        one.join(60)
    assert (ingest.position_bytes, ingest.missing(0, 48 * MIB)) == (48 * MIB, ())
    assert (tmp_path / "blob").read_bytes() == b"".join(data)
    assert max(ahead) <= AHEAD_BYTES + 2 * writers * MIB
    ingest.close()

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from cri_shim.errors import Cancelled
from cri_shim.store.ingest import Ingest

RECORD = struct.Struct("<BQ")


def records(fd: int) -> list[tuple[int, int]]:
    os.set_blocking(fd, False)
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    return list(RECORD.iter_unpack(data))


def test_a_follower_sees_what_was_there_and_what_comes(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", 10)
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
    ingest = Ingest(tmp_path / "blob", 10)
    ingest.append(b"wrong")
    blob, marks, _ = ingest.follow()
    ingest.restart()
    assert records(marks)[-1][0] == 3
    assert (ingest.position_bytes, ingest.generation) == (0, 1)
    os.close(blob)
    os.close(marks)
    ingest.close()


def test_a_restart_before_the_first_byte_is_nothing(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", 10)
    ingest.restart()
    assert ingest.generation == 0
    ingest.close()


def test_a_follower_of_a_complete_blob_is_told_so_at_once(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", 3)
    ingest.append(b"abc")
    ingest.finish()
    blob, marks, _ = ingest.follow()
    assert records(marks)[-1] == (2, 3)
    os.close(blob)
    os.close(marks)
    ingest.close()


def test_nothing_can_be_done_after_the_close(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "blob", 3)
    ingest.close()
    ingest.close()
    for call in (lambda: ingest.append(b"x"), ingest.follow, ingest.finish, ingest.restart):
        with pytest.raises(Cancelled):
            call()
    ingest_descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)]
    assert not [target for target in ingest_descriptors if str(tmp_path) in target]


def _open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")

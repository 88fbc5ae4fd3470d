from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cri_shim.store.ballast import BALLAST_BYTES, Ballast, lacks_room
from cri_shim.store.index import Index
from rootfs.failpoints import arm


def test_it_is_there_until_it_is_thrown_off(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "ballast")
    ballast.load()
    ballast.load()
    assert (tmp_path / "ballast").stat().st_size == BALLAST_BYTES
    assert ballast.throw_off() is True
    assert ballast.throw_off() is False
    ballast.load()
    assert (tmp_path / "ballast").exists()


@pytest.mark.parametrize("step", ["open", "posix_fallocate"])
def test_a_full_disk_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    Ballast(tmp_path / "ballast").load()
    assert not (tmp_path / "ballast").exists()


def test_what_frees_room_is_tried_again_without_it(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    (tmp_path / "trace").touch()
    arm(f"trace:{tmp_path}/trace;index.commit.drop_layers=errno:ENOSPC")
    try:
        with pytest.raises(Exception, match="No space"):
            index.drop_layers((), ())
    finally:
        arm("")
    assert (tmp_path / "trace").read_text().count("index.commit.drop_layers") == 2
    assert not (tmp_path / "ballast").exists()
    index.drop_layers((), ())
    assert (tmp_path / "ballast").exists()
    index.close()


@pytest.mark.parametrize(("error", "lacks"), [(errno.EDQUOT, True), (errno.ENOSPC, True), (errno.EIO, False)])
def test_room_is_looked_for_by_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, *, lacks: bool
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    assert lacks_room(tmp_path) is False
    monkeypatch.setattr(os, "pwrite", refuse)
    assert lacks_room(tmp_path) is lacks
    assert list(tmp_path.iterdir()) == []

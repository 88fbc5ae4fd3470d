"""Early writeback: it syncs while there is something to sync, and ends with the helper."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from rootfs import writeback
from rootfs.client import Helper, Options
from rootfs.failpoints import arm
from rootfs.writeback import Writeback, keep_syncing
from tests.fakes.rootfs_jobs import gone, until

WAIT = 30.0


@pytest.fixture(autouse=True)
def off_again():
    yield
    arm("")


def test_it_syncs_while_layers_are_unpacked_and_not_otherwise():
    heard, told = os.pipe()
    syncs, synced = [], threading.Event()

    def sync():
        syncs.append(1)
        synced.set()

    thread = threading.Thread(target=keep_syncing, args=(heard, sync, 0.01))
    thread.start()
    os.write(told, b"++")
    assert synced.wait(WAIT)
    os.write(told, b"-")
    synced.clear()
    assert synced.wait(WAIT)
    os.write(told, b"-")
    until(lambda: not waiting_bytes(heard), "the reading of what was said")
    count = len(syncs)
    synced.clear()
    assert not synced.wait(0.2)
    assert len(syncs) == count
    os.close(told)
    thread.join(WAIT)
    assert not thread.is_alive()
    os.close(heard)


def waiting_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def hits(trace: Path, count: int) -> list[str]:
    deadline = time.monotonic() + WAIT
    while len(found := trace.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_process_does_it_and_an_error_is_nothing(tmp_path, monkeypatch):
    (tmp_path / "trace").touch()
    monkeypatch.setattr(writeback, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(keep_syncing, "__defaults__", (0.01,))
    arm(f"trace:{tmp_path}/trace;writeback.syncfs=errno:EIO@2")
    root, before = os.open(tmp_path, os.O_RDONLY), children()
    early = Writeback(root)
    early.ended()
    assert children() <= before  # those of earlier tests may go
    early.begun()
    (pid,) = children() - before
    assert set(hits(tmp_path / "trace", 4)) == {f"writeback.syncfs {pid}"}
    early.close()
    early.close()
    assert os.waitpid(pid, 0)[1] == 0
    os.close(root)


@pytest.mark.parametrize("on", [True, False])
def test_the_helper_has_one_with_its_first_layer(tmp_path, on):
    helper = Helper.start(tmp_path / "store", options=Options(writeback=on))
    pid = helper.facts()["pid"]
    try:
        assert helper.recover().future.result(WAIT) == ()
    finally:
        begun = time.monotonic()
        helper.close()
    assert time.monotonic() - begun < WAIT
    assert gone(pid)

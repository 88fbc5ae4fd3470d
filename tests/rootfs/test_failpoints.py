"""Failpoints: what they do when they are on, and that they are nothing when they are off."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rootfs.client import Helper
from rootfs.errors import RootfsError
from rootfs.failpoints import arm, armed, failpoint

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def off_again():
    yield
    arm("")


def test_off_it_is_nothing():
    failpoint("layer.rename")
    assert armed() == ("", ())
    begun = time.perf_counter()
    for _ in range(100_000):
        failpoint("layer.rename")
    assert (time.perf_counter() - begun) / 100_000 < 10e-6  # 0.04 µs on a quiet machine


def test_it_fails_as_the_kernel_would_from_the_hit_on_that_was_asked_for():
    arm("a=errno:ENOSPC@3;b=errno:EIO")
    failpoint("a")
    failpoint("c")
    failpoint("a")
    for _ in range(2):
        with pytest.raises(OSError, match="No space") as caught:
            failpoint("a")
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="Input/output"):
        failpoint("b")


def test_hits_are_written_down_also_by_children(tmp_path):
    (tmp_path / "trace").touch()
    arm(f"trace:{tmp_path}/trace;a=errno:EIO@3")
    failpoint("a")
    child = os.fork()
    if child == 0:
        failpoint("a")
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(OSError, match="Input"):
        failpoint("a")
    pids = [os.getpid(), child, os.getpid()]
    assert (tmp_path / "trace").read_text() == "".join(f"a {pid}\n" for pid in pids)


@pytest.mark.parametrize("action", ["kill", "pause"])
def test_it_ends_or_holds_the_process(tmp_path, action):
    (tmp_path / "trace").touch()
    code = f"from rootfs.failpoints import *; arm('trace:{tmp_path}/trace;a={action}'); failpoint('a'); print('on')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "trace").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if action == "pause":
            assert process.poll() is None
            process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert process.stdout.read() == b""


@pytest.mark.parametrize(
    "text", ["a", "a=", "a=die", "a=errno", "a=errno:EWHAT", "a=errno:sys", "a=kill:EIO", "a=kill@x", "=;x"]
)
def test_what_is_no_failpoint_is_refused(text):
    with pytest.raises(RootfsError, match="no failpoint"):
        arm(text)


def test_the_helper_and_its_children_have_them_too(tmp_path):
    (tmp_path / "trace").touch()
    arm(f"trace:{tmp_path}/trace;recover.mended=errno:EROFS")
    helper = Helper.start(tmp_path / "store")
    try:
        with pytest.raises(RootfsError, match="Read-only"):
            helper.recover().future.result(30)
        helper.trash(("absent",)).future.result(30)
    finally:
        helper.close()
    names = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    assert {name for name, _ in names} >= {"recover.mended", "trash.rename"}
    assert str(os.getpid()) not in {pid for _, pid in names}

"""The lock protocol, against another process that holds the lock as a runtime would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cri_shim.errors import HandOffFailed
from cri_shim.handoff import lockfile
from cri_shim.handoff.lockfile import LockedFile

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_rewrite_changes_the_stamp_and_the_same_again_does_not(tmp_path: Path) -> None:
    file = LockedFile(tmp_path, "images")
    lock = tmp_path / "images.lock"
    assert file.read() == b""
    file.replace(b"[]")
    stamp = lock.read_bytes()
    assert (len(stamp), file.read(), file.is_ours()) == (64, b"[]", True)
    file.replace(b"[]")
    assert lock.read_bytes() == stamp
    file.replace(b"[1]")
    assert lock.read_bytes() != stamp
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["images.json", "images.lock"]
    file.close()


def test_what_somebody_else_wrote_is_noticed_and_replaced(tmp_path: Path) -> None:
    file = LockedFile(tmp_path, "images")
    file.replace(b"[]")
    file.path.write_bytes(b"[2]")
    assert not file.is_ours()
    file.replace(b"[]")
    assert file.read() == b"[]"
    file.path.unlink()
    assert not file.is_ours()
    file.close()


def test_a_reader_that_does_not_let_go_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "LOCK_SECONDS", 0.05)
    file = LockedFile(tmp_path, "images")
    file.replace(b"[]")
    lock = tmp_path / "images.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"held\n"
        with pytest.raises(HandOffFailed, match=r"images\.lock is held by another program"):
            file.replace(b"[1]")
        assert file.read() == b"[]"
        reader.communicate(b"")
    file.replace(b"[1]")
    assert file.read() == b"[1]"
    file.close()

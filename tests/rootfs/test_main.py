"""`python -m rootfs`, as a program."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tars import D, F, tar

LAYER = tar(D("d"), F("d/a", b"1"), F("i/j"), F("b/.wh.c"), F("d/.wh..wh..opq"))


def run(*arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    top = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", "rootfs", *arguments], input=data, capture_output=True, cwd=top, check=False
    )


def test_apply(tmp_path):
    blob = gzip.compress(LAYER)
    done = run("apply", str(tmp_path), data=blob)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["diff_id"] == "sha256:" + hashlib.sha256(LAYER).hexdigest()
    assert found["blob"] == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert (found["entries"], found["opaque"], found["implied"], found["whiteouts"]) == (5, ["d"], ["b", "i"], 1)
    assert (tmp_path / "d/a").read_bytes() == b"1"


@pytest.mark.parametrize("data", [tar(F("../x")), b"text" * 200, gzip.compress(LAYER)[:-3]])
def test_a_refusal_is_one_line(tmp_path, data):
    done = run("apply", str(tmp_path), data=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"apply: ")
    assert done.stderr.count(b"\n") == 1


def test_directories_that_do_not_serve(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    for name in ("full", "missing", "full/x"):
        done = run("apply", str(tmp_path / name), data=LAYER)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert os.listdir(tmp_path / "full") == ["x"]


def test_digest():
    blob = gzip.compress(LAYER)
    found = json.loads(run("digest", data=blob).stdout)
    assert found == {
        "blob": "sha256:" + hashlib.sha256(blob).hexdigest(),
        "compression": "gzip",
        "diff_id": "sha256:" + hashlib.sha256(LAYER).hexdigest(),
        "diff_size_bytes": len(LAYER),
    }


def test_unprivileged(tmp_path):
    done = run("apply", "--unprivileged", str(tmp_path), data=tar(F("a", uid=4711)))
    assert json.loads(done.stdout)["skipped"] == {"owner": 1}

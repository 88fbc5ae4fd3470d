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

from rootfs.digest import Digest
from tests.fakes.tars import D, F, tar

LAYER = tar(D("d"), F("d/a", b"1"), F("i/j"), F("b/.wh.c"), F("d/.wh..wh..opq"))


def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
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
    marks = {name: os.getxattr(tmp_path / "d", name) for name in os.listxattr(tmp_path / "d") if "overlay" in name}
    assert list(marks.values()) == [b"y"], "a mount hides what lies below"


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


@pytest.fixture
def kept(tmp_path):
    """A tree, and its record beside it."""
    (tmp_path / "tree").mkdir()
    done = run("apply", str(tmp_path / "tree"), "--tar-split", str(tmp_path / "record"), data=gzip.compress(LAYER))
    found = json.loads(done.stdout)["record"]
    assert found == {
        "digest": str(Digest.of((tmp_path / "record").read_bytes())),
        "size_bytes": (tmp_path / "record").stat().st_size,
        "lost": "",
    }
    return str(tmp_path / "tree"), "--tar-split", str(tmp_path / "record")


def test_check(kept, tmp_path):
    diff_id = str(Digest.of(LAYER))
    done = run("check", *kept, "--diff-id", diff_id)
    assert json.loads(done.stdout) == {"diff_id": diff_id, "diff_size_bytes": len(LAYER)}
    (tmp_path / "tree/d/a").write_bytes(b"2")
    done = run("check", *kept, "--diff-id", diff_id)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b'check: the file "d/a" is not the one that was unpacked\n'


def test_check_and_assemble_a_layer_of_a_store(kept, tmp_path):
    layer = tmp_path / "overlay/name"
    layer.mkdir(parents=True)
    (tmp_path / "tree").rename(layer / "diff")
    done = run("check", str(layer), "--diff-id", str(Digest.of(LAYER)))
    assert done.returncode == 1
    assert b"tar-split.gz: the layer was unpacked without one, or DIR is the tree itself" in done.stderr
    (tmp_path / "record").rename(layer / "tar-split.gz")
    assert run("assemble", str(layer)).stdout == LAYER
    assert b"say with --diff-id what the layer should be" in run("check", str(layer)).stderr
    for seal, told in ((b"[", b"does not say"), (b'{"diff_id": 1}', b"does not say")):
        (layer / "layer.json").write_bytes(seal)
        assert told in run("check", str(layer)).stderr
    (layer / "layer.json").write_text(json.dumps({"diff_id": str(Digest.of(LAYER))}))
    assert run("check", str(layer)).returncode == 0
    (layer / "layer.json").write_text(json.dumps({"diff_id": str(Digest.of(b""))}))
    done = run("check", str(layer))
    assert done.returncode == 1
    assert str(Digest.of(LAYER)).encode() in done.stderr


def test_a_record_is_never_written_over(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "record").write_bytes(b"mine")
    done = run("apply", str(tmp_path / "tree"), "--tar-split", str(tmp_path / "record"), data=LAYER)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert (tmp_path / "record").read_bytes() == b"mine"


def test_who_reads_the_tar_may_leave(kept):
    code = "import subprocess,sys; p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); p.stdout.close(); sys.exit(p.wait())"
    command = [sys.executable, "-c", code, sys.executable, "-m", "rootfs", "assemble", *kept]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_unprivileged(tmp_path):
    done = run("apply", "--unprivileged", str(tmp_path), data=tar(F("a", uid=4711)))
    assert json.loads(done.stdout)["skipped"] == {"owner": 1}

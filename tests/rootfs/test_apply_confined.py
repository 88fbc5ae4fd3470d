"""The same layer, unpacked here and by a child that the kernel confines: nothing may differ but what the child gave up."""

from __future__ import annotations

import os
import struct

import pytest

from rootfs.client import Helper
from rootfs.digest import Digest
from rootfs.limits import Limits
from rootfs.watermarks import WatermarkWriter
from tests.fakes.ground import Ground, snapshot
from tests.fakes.tars import C, D, F, H, P, S, map_lines, tar

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "7"}
LAYER = tar(
    D("./", mtime=3),
    D("d", uid=1000, gid=1000, mode=0o700, mtime=5),
    F("d/x", b"1" * 1000, uid=1000, mode=0o400, pax={"SCHILY.xattr.user.a": "b"}),
    F("d/cap", b"x", uid=5, mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
    D("d/closed", mode=0, uid=7),
    F("d/closed/y", b"2", uid=7, mode=0o4711),
    S("s", "d", uid=8),
    F("s/z", b"3"),
    H("h", "d/x", uid=1000, mode=0o640, mtime=77),
    C("n", 1, 3, mode=0o666, uid=3),
    P("p", mode=0o4622, uid=9),
    D("r", mtime=1),
    D("r/a/b", mtime=1, mode=0),
    F("r/a/b/c", b"x"),
    F("r", b"now a file"),
    F("sparse", map_lines(2, 1, 2, 5, 1) + b"abc", pax=SPARSE),
    F("large", b"q" * 3_000_000),
    F("large", b"r" * 10),
    D("opaque", mtime=1),
    F("opaque/.wh..wh..opq"),
    F("opaque/.wh.x"),
    D("e", pax={"SCHILY.xattr.user.d": "1"}),
    F("e/f", mode=0o666),
)


def tree(top) -> dict[bytes, tuple[object, ...]]:
    """Everything beneath *top*; its own time is whatever it is."""
    start = len(os.fsencode(top))
    return {path[start:]: about for path, about in snapshot(top).items() if len(path) > start}


@pytest.mark.needs("root", "mounts")
def test_a_confined_child_makes_the_same_tree(tmp_path):
    ground = Ground(tmp_path)
    wanted = ground.apply(LAYER)
    (tmp_path / "blob").write_bytes(LAYER)
    blob = os.open(tmp_path / "blob", os.O_RDONLY)
    reading, writing = os.pipe()
    WatermarkWriter(writing).end(len(LAYER))
    helper = Helper.start(tmp_path / "root")
    try:
        job = helper.unpack("one", blob, reading, blob=Digest.of(LAYER), blob_size_bytes=len(LAYER), limits=Limits())
        assert job.future.result(20) == wanted
        made = tree(tmp_path / "root/staging/one/diff")
    finally:
        helper.close()
        os.close(blob)
        os.close(reading)
        os.close(writing)
    marked = made[b"/opaque"]
    assert marked[-1] == (("trusted.overlay.opaque", b"y"),)
    made[b"/opaque"] = (*marked[:-1], ())
    assert made == tree(ground.root)

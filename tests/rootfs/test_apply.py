"""The whole of it: digests, what is counted, limits of bytes, what the kernel's errors become, sequences of evil names."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootfs.apply import apply_layer
from rootfs.errors import LayerRejected, LimitExceeded, NoSpace, RootfsError
from rootfs.limits import Limits
from tests.fakes.ground import UP, Ground
from tests.fakes.tars import B, C, D, F, H, P, S, gnu_name, header, map_lines, pax, tar


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


PACKED = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("step", [0, 1, 1000])
def test_both_digests_cover_everything(ground, compression, step):
    layer = tar(B) + b"rubbish after the end" * 100
    blob = PACKED[compression](layer)
    applied = ground.apply(blob, step=step)
    assert (str(applied.diff_id), applied.diff_size_bytes) == (sha256(layer), len(layer))
    assert (str(applied.blob), applied.blob_size_bytes) == (sha256(blob), len(blob))
    assert applied.compression == compression
    assert ground.read("etc/passwd") == b"root"


def test_other_algorithms(ground):
    applied = ground.apply(tar(B), algorithm="sha512")
    assert str(applied.blob) == "sha512:" + hashlib.sha512(tar(B)).hexdigest()
    assert str(applied.diff_id) == sha256(tar(B))


@pytest.mark.parametrize("layer", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_empty_layers(ground, layer):
    applied = ground.apply(layer)
    assert (applied.entries, applied.inodes, str(applied.diff_id)) == (0, 0, sha256(layer))


def test_a_plain_layer_is_not_sniffed(ground):
    assert ground.apply(tar(B), plain=True).entries == 6
    for compression in ("gzip", "zstd"):
        with pytest.raises(LayerRejected):
            ground.apply(PACKED[compression](tar(B)), plain=True)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 16384, 262143, 262144, 300_000, 1_000_000])
@pytest.mark.parametrize("step", [0, 77_777])
def test_contents_of_every_size(ground, size, step):
    content = bytes(range(256)) * (size // 256 + 1)
    applied = ground.apply(tar(F("before", b"b"), F("f", content[:size]), F("after", b"a")), step=step)
    assert ground.read("f") == content[:size]
    assert (ground.read("before"), ground.read("after")) == (b"b", b"a")
    assert applied.usage_bytes == size + 2


def test_short_writes(ground, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    content = os.urandom(100_000)
    ground.apply(tar(F("f", content), F("g", content[:100])))
    assert (ground.read("f"), ground.read("g")) == (content, content[:100])


def test_holes_stay_holes(ground):
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 30)}
    applied = ground.apply(tar(F("f", map_lines(1, 512, 512) + b"x" * 512, pax=records), F("g", b"1")))
    status = ground.stat("f")
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 <= 16384
    assert applied.usage_bytes == 513
    with (ground.root / "f").open("rb") as file:
        assert file.read(1536) == bytes(512) + b"x" * 512 + bytes(512)


def test_names_of_sparse_files_are_checked(ground):
    records = {
        "GNU.sparse.map": "0,512",
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.size": str(1 << 30),
        "GNU.sparse.name": UP + ground.V + "/x",
    }
    with pytest.raises(LayerRejected, match="leaves the layer"):
        ground.apply(tar(F("f", b"x" * 512, pax=records)))


BOMBS = {  # made when they are asked for: no run holds them all
    "in a file": lambda: tar(F("z", bytes(40 << 20))),
    "after the end": lambda: tar(F("z")) + bytes(40 << 20),
    "in a header": lambda: tar(*(pax({"comment": "x" * 500_000}) for _ in range(90)), F("a")),
}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(ground, bomb, compression):
    blob = PACKED[compression](BOMBS[bomb]())
    for changes, bound in (
        ({"unpacked_bytes": 20 << 20}, "unpacked_bytes"),
        ({"ratio": 100, "ratio_floor_bytes": 10 << 20}, "ratio"),
    ):
        with pytest.raises(LimitExceeded) as caught:
            ground.apply(blob, **changes)
        assert caught.value.bound == bound


def test_bombs_take_no_memory(ground):
    blob = gzip.compress(BOMBS["after the end"]())
    tracemalloc.start()
    try:
        ground.apply(blob)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_limits_at_the_bound(ground):
    layer = tar(F("z", b"x" * 5000))
    assert ground.apply(layer, unpacked_bytes=len(layer)).entries == 1
    with pytest.raises(LimitExceeded):
        ground.apply(layer, unpacked_bytes=len(layer) - 1)
    packed = gzip.compress(layer)
    enough = -(-len(layer) // len(packed))
    assert ground.apply(packed, ratio=enough, ratio_floor_bytes=0).entries == 1
    with pytest.raises(LimitExceeded):
        ground.apply(packed, ratio=enough - 1, ratio_floor_bytes=0)
    assert ground.apply(packed, ratio=1, ratio_floor_bytes=len(layer)).entries == 1


def test_entries_are_bounded(ground):
    assert ground.apply(tar(B), entries=6).entries == 6
    with pytest.raises(LimitExceeded, match="entries"):
        ground.apply(tar(B), entries=5)


def test_directories_are_bounded(ground):
    assert ground.apply(tar(D("a"), F("b/c/d")), directories=3).entries == 2
    for entries in (D("a") + D("b") + D("c") + D("d"), F("a/b/c/d/e"), D("a") * 5 + D("b/c/d")):
        with pytest.raises(LimitExceeded, match="directories"):
            ground.apply(tar(entries), directories=3)
    assert ground.apply(tar(D("a") * 50), directories=3).inodes == 1


class Failing:
    """A reader whose disk fails after *data*."""

    def __init__(self, data: bytes, error: Exception) -> None:
        self._data = io.BytesIO(data)
        self._error = error

    def read(self, size: int, /) -> bytes:
        data = self._data.read(size)
        if not data:
            raise self._error
        return data


@pytest.mark.parametrize("cut", [0, 100, 512, 700])
def test_a_source_that_fails(ground, tmp_path, cut):
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(RootfsError, match="cannot be read") as caught:
            apply_layer(
                Failing(tar(F("f", b"x" * 300))[:cut], OSError(errno.EINVAL, "bad")),
                root,
                limits=Limits(),
                privileged=False,
            )
        assert type(caught.value) is RootfsError
        with pytest.raises(NoSpace):
            apply_layer(Failing(tar(F("f", b"x" * 300))[:cut], MemoryError()), root, limits=Limits(), privileged=False)
        gone = RootfsError("abandoned")
        with pytest.raises(RootfsError, match="abandoned"):
            apply_layer(Failing(tar(F("f", b"x" * 300))[:cut], gone), root, limits=Limits(), privileged=False)
    finally:
        os.close(root)


ERRNOS = [
    (errno.ENOSPC, NoSpace),
    (errno.EDQUOT, NoSpace),
    (errno.EMFILE, NoSpace),
    (errno.ENFILE, NoSpace),
    (errno.ENOMEM, NoSpace),
    (errno.EIO, RootfsError),
    (errno.EROFS, RootfsError),
    (errno.EPERM, RootfsError),
    (errno.EFBIG, LimitExceeded),
    (errno.ENAMETOOLONG, LayerRejected),
    (errno.EMLINK, LayerRejected),
]
CALLS = [
    "open",
    "write",
    "mkdir",
    "symlink",
    "link",
    "mknod",
    "utime",
    "fchmod",
    "fchown",
    "chown",
    "ftruncate",
    "lseek",
]


def failing(real, number: int, only: bytes | None):
    """A function of `os` that fails with *number*: not for what the test itself does, and perhaps for one name only."""

    def fail(*args, **named):
        if isinstance(args[0], Path) or only not in (None, args[0]):
            return real(*args, **named)
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.needs("root")
@pytest.mark.parametrize("call", CALLS)
def test_errors_of_the_kernel(ground, monkeypatch, call):
    sparse = {"GNU.sparse.map": "5,1", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "9"}
    parts = (D("d", uid=1), F("f", b"x", uid=1), S("s", "t", uid=1), H("h", "f"), C("c", 1, 3, uid=1), P("p"))
    layer = tar(*parts, F("t", b"y", pax=sparse))
    real = getattr(os, call)
    for number, kind in ERRNOS:
        monkeypatch.setattr(os, call, failing(real, number, only=b"f" if call == "open" else None))
        with pytest.raises(kind) as caught:
            ground.apply(layer)
        assert type(caught.value) is kind
        assert caught.value.steps


def test_errors_that_nobody_foresaw(ground, monkeypatch):
    def fail(*_args, **_named):
        raise ValueError("embedded null byte")

    monkeypatch.setattr(os, "symlink", fail)
    with pytest.raises(LayerRejected):
        ground.apply(tar(S("s", "t")))


def test_a_layer_is_unpacked_again_after_a_refusal(ground):
    with pytest.raises(LayerRejected):
        ground.apply(tar(F("a"), F("../x")))
    assert ground.apply(tar(B)).entries == 6


NAMES = [
    "a",
    "b",
    "a/b",
    "b/a",
    ".",
    "..",
    "",
    "a/..",
    "a/../b",
    "/a",
    "a/",
    "./a",
    "../victim/hello",
    "{V}/hello",
    "{V}",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    "a/.wh.b",
    "a/.wh..wh..opq",
    ".wh...",
    "a//b",
    "a/b/a",
    "proc/self/root",
]
TARGETS = [*NAMES, "../../victim", "{UP}{V}", "a/../../..", "/", "/proc/self/root"]
MAKERS = {
    "file": lambda name, target: F(name, target.encode()),
    "directory": lambda name, target: D(name, mode=0o700),
    "closed": lambda name, target: D(name, mode=0 if os.geteuid() == 0 else 0o711),
    "symlink": S,
    "link": H,
    "fifo": lambda name, target: P(name),
    "whiteout": lambda name, target: C(name, 0, 0),
    "pax": lambda name, target: F("innocent", b"1", pax={"path": name or "x"}),
    "gnu": lambda name, target: gnu_name(name) + header("innocent"),
    "owned": lambda name, target: F(name, b"2", mode=0o4755, uid=7),
}


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(MAKERS)), st.sampled_from(NAMES), st.sampled_from(TARGETS)), max_size=7)
)
def test_no_sequence_of_names_leads_outside(entries):
    """The model is: nothing outside changes (the ground checks it), and what was accepted can be seen and removed."""
    with tempfile.TemporaryDirectory() as top:
        ground = Ground(Path(top))

        def fill(text: str) -> str:
            return text.replace("{V}", ground.V).replace("{UP}", UP)

        try:
            applied = ground.apply(tar(*(MAKERS[kind](fill(name), fill(target)) for kind, name, target in entries)))
        except LayerRejected:
            return
        assert not any(part.startswith(".wh.") for name in ground.names() for part in name.split("/"))
        assert sum(ground.is_whiteout(name) for name in ground.names()) <= applied.whiteouts
        assert all(ground.is_dir(path.decode() or ".") for path in (*applied.opaque, *applied.implied))
        assert all(ground.stat(name).st_uid in (0, 7, os.geteuid()) for name in ground.names())

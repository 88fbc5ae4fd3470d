"""The tar made again: what was changed meanwhile is named, and a damaged record is refused, never followed outside."""

from __future__ import annotations

import gzip
import io
import json
import os
import tracemalloc
from base64 import b64encode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootfs.assemble import LINE_BYTES, assemble, read_record, verify
from rootfs.digest import Digest
from rootfs.errors import ContentMismatch, LayerRejected, RootfsError
from rootfs.tarsplit import crc64_iso
from tests.fakes.descriptors import opened_within
from tests.fakes.ground import UP, Ground
from tests.fakes.tars import B, D, F, H, S, tar


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


@pytest.fixture
def root(ground):
    """The tree of an unpacked layer, open."""
    ground.apply(tar(B))
    descriptor = os.open(ground.root, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def packed(*written):
    """A record with these lines."""
    return io.BytesIO(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in written)))


def file_line(name, content, **changes):
    checksum = b64encode(crc64_iso(content).to_bytes(8, "big")).decode()
    return {"type": 1, "name": name, "size": len(content), "payload": checksum, "position": 0, **changes}


def test_the_same_bytes(ground, root):
    assert b"".join(assemble(io.BytesIO(ground.record), root)) == tar(B)
    assert verify(io.BytesIO(ground.record), root, Digest.of(tar(B))) == len(tar(B))


CHANGES = {
    "content": lambda file: file.write_bytes(b"b"),
    "longer": lambda file: file.write_bytes(b"aa"),
    "empty": lambda file: file.write_bytes(b""),
    "gone": os.unlink,
    "a link": lambda file: (file.unlink(), file.symlink_to("b")),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a fifo": lambda file: (file.unlink(), os.mkfifo(file)),
    "no parent": lambda file: file.parent.rename(file.parent.parent / "elsewhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_differs_is_named(ground, root, change):
    CHANGES[change](ground.root / "dir/a")
    with pytest.raises(ContentMismatch, match='^the file "dir/a" is not the one that was unpacked$'):
        verify(io.BytesIO(ground.record), root, Digest.of(tar(B)))


def test_a_directory_of_the_same_size(ground, root):
    size = (ground.root / "dir").stat().st_size
    assert size > 0
    with pytest.raises(ContentMismatch, match='^the file "dir" is not'):
        list(assemble(packed(file_line("dir", b"x" * size)), root))


def test_a_record_of_something_else(ground, root):
    """All files are right, and yet the tar is another: names and owners are in the record only."""
    with pytest.raises(ContentMismatch, match=f"that is the record of {Digest.of(tar(B))}"):
        verify(io.BytesIO(ground.record), root, Digest.of(b""))


@pytest.mark.parametrize(
    "name", ["../victim/hello", "/../victim/hello", "dir/../../../victim/hello", "link/hello", "abs/hello"]
)
def test_nothing_outside_is_read(ground, root, name):
    os.symlink(UP + ground.V, ground.root / "link")
    os.symlink(ground.V, ground.root / "abs")
    with pytest.raises((LayerRejected, ContentMismatch)):
        list(assemble(packed(file_line(name, b"secret")), root))


GOOD = file_line("file", b"old")


@pytest.mark.parametrize(
    "line",
    [
        [],
        7,
        {},
        {"type": 3, "payload": None},
        {"type": 2, "payload": "?"},
        {"type": 2, "payload": "QQ"},
        {"type": 1},
        {**GOOD, "size": -1},
        {**GOOD, "size": "3"},
        {**GOOD, "size": 1.5},
        {**GOOD, "payload": None},
        {**GOOD, "payload": "AAAA"},
        {**GOOD, "name_raw": "?"},
        {"type": 1, "size": 3, "payload": GOOD["payload"]},
    ],
)
def test_a_damaged_line_is_refused(root, line):
    with pytest.raises(LayerRejected, match="^line 2 of the record of the tar is damaged$"):
        list(assemble(packed(GOOD, line), root))


def test_damage_that_is_no_line(root):
    whole = packed(GOOD, GOOD).getvalue()
    for damaged in (
        whole[:-4],
        gzip.compress(b'{"type":2'),
        gzip.compress(b"\xff\n"),
        gzip.compress(b"[" * 5000 + b"\n"),
    ):
        with pytest.raises(LayerRejected):
            list(assemble(io.BytesIO(damaged), root))


def test_a_line_has_a_bound():
    def line(length):
        body = b'{"type":2,"payload":"' + b"A" * (length - 23) + b'"}'
        return io.BytesIO(gzip.compress(body + b"\n", 1))

    assert len(next(read_record(line(LINE_BYTES - 1))).raw) > (3 << 20) - 64
    with pytest.raises(LayerRejected, match="a line of more than"):
        list(read_record(line(LINE_BYTES + (1 << 20))))


def test_raw_names_and_unknown_fields(ground, root):
    (ground.root / os.fsdecode(b"\xff")).write_bytes(b"odd")
    line = {**file_line("", b"odd"), "name_raw": b64encode(b"\xff").decode(), "later": [1]}
    assert b"".join(assemble(packed(line), root)) == b"odd"


def test_memory_stays(ground):
    content = os.urandom(24 << 20)
    ground.apply(tar(F("large", content), F("f", b"x")) + bytes(8 << 20))
    root = os.open(ground.root, os.O_RDONLY)
    tracemalloc.start()
    total = sum(map(len, assemble(io.BytesIO(ground.record), root)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    os.close(root)
    assert total > 32 << 20
    assert peak < 12 << 20


def test_every_descriptor_is_given_back(ground, root):
    (ground.root / "dir/b").write_bytes(b"?")
    with opened_within() as opened:
        pieces = assemble(io.BytesIO(ground.record), root)
        with pytest.raises(ContentMismatch):
            list(pieces)
        unfinished = assemble(io.BytesIO(ground.record), root)
        for _ in range(4):
            next(unfinished)
        unfinished.close()
        assert opened() == set()


NAMES = st.sampled_from(
    ["a", "b", "a/b", "b/a", "a/", "./a", "c/../a", "\u00e9", "a/c", "l/a", ".wh.a", "a/.wh..wh..opq"]
)
ENTRIES = st.one_of(
    st.builds(F, NAMES, st.binary(max_size=1200)),
    st.builds(D, NAMES),
    st.builds(S, NAMES, st.sampled_from(["a", "b", "..", "/", "a/b"])),
    st.builds(H, NAMES, NAMES),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ENTRIES, max_size=8), st.sampled_from([0, 1, 511, 700]), st.binary(max_size=700))
def test_whatever_can_be_unpacked_is_made_again_or_known_as_lost(tmp_path_factory, entries, step, rest):
    ground = Ground(tmp_path_factory.mktemp("g"))
    try:
        applied = ground.apply(tar(*entries) + rest, step=step, privileged=False)
    except RootfsError:
        return
    assert bool(applied.record.digest) == (not applied.record.lost)

"""The record of a tar: its lines, its bounds, what it leaves out, what it costs; that it makes the tar again.

That last thing is also checked for every layer of every other test that unpacks (`tests.fakes.ground`).
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
from base64 import b64decode, b64encode

import pytest

from rootfs import compression, tarsplit
from rootfs.apply import apply_layer
from rootfs.errors import NoSpace
from rootfs.limits import Limits
from rootfs.tarsplit import REPLACED, TOO_LONG, Recorder, crc64_iso
from tests.fakes.ground import Ground
from tests.fakes.tars import (
    END,
    B,
    C,
    D,
    F,
    H,
    P,
    S,
    gnu_name,
    header,
    map_lines,
    padded,
    pax,
    tar,
)


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


def lines(record):
    return [json.loads(line) for line in gzip.decompress(record).splitlines()]


def test_the_sum_is_the_one_of_go():
    """The check value of CRC-64/GO-ISO, and that sums go on."""
    assert crc64_iso(b"123456789") == 0xB90956C775A41001
    assert crc64_iso(b"6789", crc64_iso(b"12345")) == 0xB90956C775A41001
    assert crc64_iso(b"") == 0


def test_lines_are_those_of_tar_split(ground):
    ground.apply(tar(D("d/"), F("d/f", b"content"), F("empty"), S("l", "d/f")) + b"more")
    directory, file = header("d/", b"5", mode=0o755), header("d/f", size=7)
    empty, link = header("empty"), header("l", b"2", mode=0o777, link="d/f")
    summed = b64encode(crc64_iso(b"content").to_bytes(8, "big")).decode()
    expected = [
        {"type": 2, "payload": directory},
        {"type": 1, "name": "d/", "payload": None},
        {"type": 2, "payload": file},
        {"type": 1, "name": "d/f", "size": 7, "payload": summed},
        {"type": 2, "payload": bytes(505) + empty},
        {"type": 1, "name": "empty", "payload": None},
        {"type": 2, "payload": link},
        {"type": 1, "name": "l", "payload": None},
        {"type": 2, "payload": END + b"more"},
    ]
    found = lines(ground.record)
    assert [line.pop("position") for line in found] == list(range(len(expected)))
    for line in found:
        if line["type"] == 2:
            line["payload"] = b64decode(line["payload"])
    assert found == expected


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (b'a"b\\c', {"name": 'a"b\\c'}),
        ("\u00e9<&>".encode(), {"name": "\u00e9<&>"}),
        (b"tab\tdel\x7f", {"name": "tab\tdel\x7f"}),
        (b"\xff/x", {"name_raw": b64encode(b"\xff/x").decode()}),
        (b"\xed\xa0\x80", {"name_raw": b64encode(b"\xed\xa0\x80").decode()}),  # half a surrogate pair is not UTF-8
        (b"~" * 300, {"name": "~" * 300}),
    ],
)
def test_names(ground, name, written):
    ground.apply(tar(F(name, b"x"))) if len(name) < 256 else ground.apply(tar(F(b"d/" * 10 + name[:200], b"x")))
    if len(name) >= 256:
        written = {"name": "d/" * 10 + "~" * 200}
    entry = next(line for line in lines(ground.record) if line["type"] == 1)
    assert {key: entry[key] for key in written} == written
    assert entry.keys() == {"type", "size", "payload", "position", *written}


KINDS = {
    "pax": pax({"path": "p" * 200, "mtime": "1.5"}) + F("short", b"long name"),
    "gnu": gnu_name("g" * 200) + F("short", b"gnu"),
    "global": pax({"comment": "x"}, b"g") + F("f", b"after"),
    "hard link": F("a", b"once") + H("b", "a"),
    "nodes": C("dev", 1, 3) + P("fifo"),
    "whiteout": D("d/") + F("d/.wh.gone") + F("d/.wh..wh..opq"),
    "whiteout with content": F(".wh.gone", b"whatever" * 300) + F("f", b"x"),
    "aufs": F(".wh..wh.plnk/1.2", b"aufs" * 500) + F("f", b"x"),
    "sparse": F(
        "s", map_lines(2, 0, 5, 4096, 3) + b"firstend", {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "8192"}
    ) + F("f", b"x"),
    "through a link": D("real/") + S("link", "real") + F("link/f", b"behind the link"),
    "upwards": D("a/") + F("a/../b", b"b"),
    "no parents": F("x/y/z", b"deep"),
    "the root": D("./") + F("./f", b"f"),
    "twice a directory": D("d/") + F("d/f", b"1") + D("d/"),
    "large": F("large", bytes(range(256)) * 4096) + F("f", b"x"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0, 1000])
@pytest.mark.parametrize("end", [END, b"", bytes(512), bytes(10240), END + b"rubbish" * 200_000])
def test_every_kind_of_tar_is_made_again(ground, kind, step, end):
    applied = ground.apply(tar(KINDS[kind], end=end), step=step, privileged=False)
    assert (applied.record.lost, applied.record.size_bytes) == ("", len(ground.record))


def test_a_last_file_without_its_padding(ground):
    assert ground.apply(tar(F("f", b"cut")[:-509], end=b"")).record.lost == ""


@pytest.mark.parametrize("kind", ["sparse", "whiteout with content", "aufs"])
def test_content_without_a_file_lies_in_the_record(ground, kind):
    ground.apply(tar(KINDS[kind]))
    (file,) = [line for line in lines(ground.record) if "size" in line]
    assert file["name"] == "f"


def test_no_name_of_a_directory_is_there_twice(ground):
    """Readers of the format refuse a record that has a name twice."""
    ground.apply(tar(D("./"), D("d/"), F("d/f", b"x"), D("d"), D(".")))
    assert [line["name"] for line in lines(ground.record) if line["type"] == 1] == ["./", "d/", "d/f"]


@pytest.mark.parametrize(
    "parts",
    [
        (F("f", b"first"), F("f", b"second")),
        (D("d/"), F("d/f", b"x"), F("d", b"y")),
        (F("a", b"x"), F("b", b"y"), H("a", "b")),
        (D("r1/"), D("r2/"), S("l", "r1"), F("l/f", b"x"), S("l", "r2")),
    ],
)
def test_a_layer_that_replaces_its_own_has_no_record(ground, parts):
    applied = ground.apply(tar(*parts))
    assert (applied.record.digest, applied.record.size_bytes, applied.record.lost) == (None, 0, REPLACED)
    assert ground.record == b""


def test_a_whiteout_that_gives_way_is_no_loss(ground):
    assert ground.apply(tar(F(".wh.a"), F("a", b"here"))).record.lost == ""


def test_a_record_has_a_bound(ground):
    layer = tar(*(F(f"name{os.urandom(8).hex()}", os.urandom(64)) for _ in range(500)))
    size = ground.apply(layer).record.size_bytes
    assert ground.apply(layer, tar_split_bytes=size).record.lost == ""
    applied = ground.apply(layer, tar_split_bytes=size - 1)
    assert (applied.record.digest, applied.record.size_bytes, applied.record.lost) == (None, 0, TOO_LONG)
    assert (ground.record, applied.entries) == (b"", 500)


def test_nothing_is_written_over_the_bound(tmp_path):
    """Not even for a moment: the file is cut off before the write that would go over."""
    root, file = os.open(tmp_path, os.O_RDONLY), os.memfd_create("record")
    longest = 0
    record = Recorder(file, 5000)
    for _ in range(2000):
        record.raw(os.urandom(512))
        record.entry(os.urandom(20))
        longest = max(longest, os.fstat(file).st_size)
    assert record.finish().lost == TOO_LONG
    assert longest <= 5000
    assert os.fstat(file).st_size == 0
    os.close(root)
    os.close(file)


def test_no_record_is_wanted(tmp_path):
    root = os.open(tmp_path, os.O_RDONLY)
    assert apply_layer(io.BytesIO(tar(B)), root, limits=Limits(), privileged=False).record is None
    os.close(root)


def test_a_full_disk(tmp_path):
    """Told as what it is, whatever was being written."""
    root, full = os.open(tmp_path, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(NoSpace, match=os.strerror(errno.ENOSPC)):
            apply_layer(io.BytesIO(tar(B)), root, limits=Limits(), privileged=False, record_fd=full)
    finally:
        os.close(root)
        os.close(full)


def test_memory_does_not_grow_with_what_has_no_file(ground):
    """Segments are cut, and lines handed on, long before a hostile layer fills the memory."""
    ground.apply(tar(F("f", b"x")) + bytes(8 << 20))
    longest = max(len(b64decode(line["payload"])) for line in lines(ground.record) if line["type"] == 2)
    assert longest < tarsplit.SEGMENT_BYTES + (512 << 10)


def test_without_isal(ground, monkeypatch):
    monkeypatch.setattr(compression, "isal_zlib", None)
    ground.apply(tar(B))
    assert len(lines(ground.record)) == 13
    assert padded(b"") == b""

"""Group Z of the attack corpus: members, frames, what may follow them, what they may cost. With isal and with zlib."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import io
import lzma
import random
import struct
import time
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rootfs import compression
from rootfs.compression import ZlibInflater, decompress
from rootfs.errors import LayerRejected, LimitExceeded, RootfsError
from rootfs.limits import Limits
from tests.fakes.ground import Dribble

TEXT = random.Random(1).randbytes(5000) + b"abc" * 100_000
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@pytest.fixture(params=["isal", "zlib"])
def inflater(request, monkeypatch):
    if request.param == "isal":
        assert compression.igzip_lib is not None, "isal is a dependency"
    else:
        monkeypatch.setattr(compression, "igzip_lib", None)
    return request.param


def undo(data: bytes, step: int = 0, size: int = 1 << 18, *, plain: bool = False, **changes) -> bytes:
    reader = decompress(
        Dribble(data, step) if step else io.BytesIO(data), dataclasses.replace(Limits(), **changes), plain=plain
    )
    found = []
    while piece := reader.read(size):
        assert len(piece) <= size
        found.append(piece)
    assert reader.read(size) == b""
    return b"".join(found)


def zipped(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def framed(data: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(level=3, **options).compress(data)


def skippable(data: bytes, low: int = 0x50) -> bytes:
    return bytes((low, 0x2A, 0x4D, 0x18)) + struct.pack("<I", len(data)) + data


def gzip_header(flags: int, *parts: bytes) -> bytes:
    head = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(6) + b"".join(parts)
    return head + (struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b"")


def with_header(head: bytes) -> bytes:
    return head + zipped(TEXT)[10:]


LARGE = gzip_header(31, struct.pack("<H", 60_000), b"e" * 60_000, b"n" * 100_000 + b"\0", b"c" * 100_000 + b"\0")

GZIP = {
    "one": (zipped(TEXT), TEXT),
    "stored": (zipped(TEXT, 0), TEXT),
    "empty": (zipped(b""), b""),
    "two": (zipped(TEXT) + zipped(b"more"), TEXT + b"more"),
    "empty between": (zipped(b"") + zipped(TEXT) + zipped(b"") * 3, TEXT),
    "zeros after": (zipped(TEXT) + bytes(512), TEXT),
    "one zero after": (zipped(TEXT) + b"\0", TEXT),
    "many zeros after": (zipped(TEXT) + bytes(3 << 20), TEXT),
    "name": (with_header(gzip_header(8, b"name\0")), TEXT),
    "all fields, large": (with_header(LARGE), TEXT),
}
BAD_GZIP = {
    "no member": b"\x1f\x8b\x08",
    "cut in the header": zipped(TEXT)[:9],
    "cut in the data": zipped(TEXT)[:-2000],
    "cut before the trailer": zipped(TEXT)[:-8],
    "cut in the trailer": zipped(TEXT)[:-1],
    "cut in the second": zipped(TEXT) + zipped(TEXT)[:100],
    "cut in the second magic": zipped(TEXT) + b"\x1f",
    "text after": zipped(TEXT) + b"garbage text",
    "text after zeros": zipped(TEXT) + bytes(10) + b"x",
    "a member after zeros": zipped(TEXT) + bytes(512) + zipped(TEXT),
    "wrong checksum": zipped(TEXT)[:-8] + b"\xff" * 4 + zipped(TEXT)[-4:],
    "wrong length": zipped(TEXT)[:-4] + b"\xff" * 4,
    "reserved flags": with_header(gzip_header(0xE0)),
    "wrong header checksum": with_header(gzip_header(2)[:-1] + b"\x77"),
    "bad block": gzip_header(0) + b"\xff" * 100,
    "name without an end": gzip_header(8) + b"n" * 1000,
    "extra field without an end": gzip_header(4, b"\xff\xff") + b"n" * 1000,
    "a member under another magic": zipped(TEXT) + b"\x1f\x8b\x07" + zipped(TEXT)[3:],
    "another method": zipped(TEXT) + b"\x1f\x8b\x07" + bytes(20),
}


@pytest.mark.parametrize("step", [0, 1, 13])
@pytest.mark.parametrize("case", GZIP)
def test_gzip(inflater, case, step):
    data, wanted = GZIP[case]
    if step and len(data) > 1 << 20:
        step *= 1000
    assert undo(data, step) == wanted


@pytest.mark.parametrize("step", [0, 13])
@pytest.mark.parametrize("case", BAD_GZIP)
def test_bad_gzip(inflater, case, step):
    with pytest.raises(LayerRejected):
        undo(BAD_GZIP[case], step)


def test_headers_of_members_are_bounded():
    with pytest.raises(LimitExceeded) as caught:
        undo(with_header(gzip_header(8, b"n" * 5000 + b"\0")), 700, header_bytes=4096)
    assert caught.value.bound == "header_bytes"
    assert undo(with_header(gzip_header(8, b"n" * 4095 + b"\0")), 700, header_bytes=4096) == TEXT


def test_many_empty_members(inflater):
    start = time.thread_time()
    assert undo(zipped(b"") * 50_000 + zipped(TEXT)) == TEXT
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("size", [1, 1000, 65536])
def test_what_one_call_gives_is_bounded(inflater, size):
    text = bytes(200_000)
    for data in (zipped(text), framed(text), text):
        reader = decompress(io.BytesIO(data), Limits())
        assert len(reader.read(size)) <= size
        assert undo(data, size=max(size, 1000)) == text


def test_zlib_serves_where_isal_is_missing():
    inflater = ZlibInflater()
    data = zipped(TEXT)[10:] + b"rest"
    found = inflater.decompress(data, 1000)
    assert not inflater.needs_input
    while not inflater.eof:
        found += inflater.decompress(b"", 1000)
    assert (found, inflater.unused_data) == (TEXT, b"rest")


ZSTD = {
    "one": (framed(TEXT), TEXT),
    "checksum": (framed(TEXT, write_checksum=True), TEXT),
    "no size": (framed(TEXT, write_content_size=False), TEXT),
    "empty": (framed(b""), b""),
    "two": (framed(TEXT) + framed(b"more"), TEXT + b"more"),
    "empty between": (framed(b"") + framed(TEXT) + framed(b"") * 3, TEXT),
    "skippable first": (skippable(b"toc") + framed(TEXT), TEXT),
    "skippable last": (framed(TEXT) + skippable(b"t" * 70_000, 0x5F), TEXT),
    "skippable between": (framed(TEXT) + skippable(b"") + skippable(b"x") + framed(b"y"), TEXT + b"y"),
    "skippable only": (skippable(b"toc"), b""),
    "many blocks": (framed(random.Random(2).randbytes(3_000_000)), random.Random(2).randbytes(3_000_000)),
    "raw block by hand": (ZSTD_MAGIC + b"\0\x58" + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc", b"abc"),
    "a repeated byte": (ZSTD_MAGIC + b"\0\x58" + struct.pack("<I", 1000 << 3 | 2 | 1)[:3] + b"x", b"x" * 1000),
    "single segment": (framed(b"short"), b"short"),
    "size of two bytes": (framed(b"x" * 300), b"x" * 300),
    "window at the bound": (
        ZSTD_MAGIC + b"\0" + bytes((17 << 3,)) + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc",
        b"abc",
    ),
}
BAD_ZSTD = {
    "magic only": ZSTD_MAGIC,
    "cut in the header": framed(TEXT)[:6],
    "cut in a block header": framed(TEXT)[:10],
    "cut in a block": framed(TEXT)[:-10],
    "cut before the checksum": framed(TEXT, write_checksum=True)[:-4],
    "cut in the checksum": framed(TEXT, write_checksum=True)[:-1],
    "wrong checksum": framed(TEXT, write_checksum=True)[:-1] + b"\x77",
    "cut in the second": framed(TEXT) + framed(TEXT)[:20],
    "cut in the second magic": framed(TEXT) + ZSTD_MAGIC[:2],
    "cut skippable": framed(TEXT) + skippable(b"x" * 100)[:-1],
    "cut skippable size": framed(TEXT) + skippable(b"")[:-1],
    "text after": framed(TEXT) + b"garbage text",
    "zeros after": framed(TEXT) + bytes(512),
    "gzip after": framed(TEXT) + zipped(TEXT),
    "dictionary": ZSTD_MAGIC + b"\x01\x58\x07" + framed(TEXT)[6:],
    "reserved bit": ZSTD_MAGIC + b"\x08\x58" + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc",
    "reserved block": ZSTD_MAGIC + b"\0\x58" + struct.pack("<I", 3 << 3 | 7)[:3] + b"abc",
    "large block": ZSTD_MAGIC + b"\0\x58" + struct.pack("<I", (128 << 10) + 1 << 3 | 1)[:3] + bytes(200_000),
    "block larger than the window": ZSTD_MAGIC + b"\0\0" + struct.pack("<I", 2000 << 3 | 1)[:3] + bytes(2000),
    "broken block": framed(TEXT, write_checksum=True)[:20] + b"\xff" * 20 + framed(TEXT, write_checksum=True)[40:],
    "less than it says": ZSTD_MAGIC + b"\x20\x05" + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc",
}


@pytest.mark.parametrize("step", [0, 1, 13])
@pytest.mark.parametrize("case", ZSTD)
def test_zstd(case, step):
    data, wanted = ZSTD[case]
    if step and len(data) > 1 << 20:
        step *= 1000
    assert undo(data, step) == wanted


@pytest.mark.parametrize("step", [0, 13])
@pytest.mark.parametrize("case", BAD_ZSTD)
def test_bad_zstd(case, step):
    with pytest.raises(LayerRejected):
        undo(BAD_ZSTD[case], step)


@pytest.mark.parametrize("descriptor", [0x89, 0x90, 0x98, 0xA0, 0xF8, 0xFF])
def test_windows_are_bounded_before_they_are_allocated(descriptor):
    block = struct.pack("<I", 3 << 3 | 1)[:3] + b"abc"
    with pytest.raises(LimitExceeded) as caught:
        undo(ZSTD_MAGIC + b"\0" + bytes((descriptor,)) + block)
    assert caught.value.bound == "window_bytes"


def test_single_segments_are_their_own_window():
    head = ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", 1 << 40)
    with pytest.raises(LimitExceeded):
        undo(head + struct.pack("<I", 3 << 3 | 1)[:3] + b"abc")


def test_a_frame_must_be_complete_for_the_library_as_well(monkeypatch):
    """The walk over the blocks is not trusted alone: here it forgets the checksum."""
    walked = compression._Zstd._open

    def forget(reader):
        walked(reader)
        reader._has_checksum = False

    monkeypatch.setattr(compression._Zstd, "_open", forget)
    with pytest.raises(LayerRejected, match="does not end with its last block"):
        undo(framed(TEXT, write_checksum=True))


def test_many_empty_frames():
    start = time.thread_time()
    assert undo(framed(b"") * 20_000 + framed(TEXT)) == TEXT
    assert time.thread_time() - start < 5


def test_a_bomb_is_given_in_small_pieces():
    block = struct.pack("<I", (128 << 10) << 3 | 2)[:3] + b"\0"
    reader = decompress(io.BytesIO(ZSTD_MAGIC + b"\0\x58" + block * 100_000), Limits())
    assert sum(len(reader.read(1 << 20)) for _ in range(20)) <= 20 << 20


@pytest.mark.parametrize(
    "data", [b"", b"x", b"plain text", b"\x1f\x8b", ZSTD_MAGIC[:3], bytes(600), b"\x1f\x8b\x07rest"]
)
@pytest.mark.parametrize("step", [0, 1])
def test_anything_else_is_left_alone(data, step):
    assert undo(data, step) == data
    assert decompress(io.BytesIO(data), Limits()).compression == "none"


@pytest.mark.parametrize("data", [zipped(TEXT), framed(TEXT), skippable(b"x")])
def test_plain_means_plain(data):
    assert undo(data, plain=True) == data
    assert undo(data, size=100, plain=True) == data


@pytest.mark.parametrize(
    ("data", "name"),
    [(bz2.compress(TEXT), "bzip2"), (lzma.compress(TEXT), "xz"), (b"\x04\x22\x4d\x18" + bytes(50), "lz4")],
)
def test_other_compressions_are_named(data, name):
    with pytest.raises(LayerRejected, match=name):
        undo(data)


def test_the_kind_is_told():
    assert decompress(io.BytesIO(zipped(TEXT)), Limits()).compression == "gzip"
    assert decompress(io.BytesIO(framed(TEXT)), Limits()).compression == "zstd"
    assert decompress(io.BytesIO(skippable(b"x")), Limits()).compression == "zstd"


TEXTS = [b"", b"a", b"b" * 3000, TEXT[:20_000]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, len(TEXTS) - 1), max_size=5),
    st.sampled_from([zipped, framed]),
    st.integers(1, 5000),
    st.integers(1, 100_000),
)
def test_how_it_arrives_makes_no_difference(texts, pack, step, size):
    data = b"".join(pack(TEXTS[number]) for number in texts)
    assert undo(data, step, size) == b"".join(TEXTS[number] for number in texts)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2), st.data())
def test_any_damage_is_read_or_refused(number, data):
    good = (zipped(TEXT[:3000]), framed(TEXT[:3000], write_checksum=True), skippable(b"abc") + framed(b"x"))[number]
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    with contextlib.suppress(RootfsError):
        undo(bytes(damaged[:cut]), data.draw(st.integers(1, 3000)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 3), st.data())
def test_every_truncation_is_noticed(number, data):
    good = (zipped(TEXT[:3000]), framed(TEXT[:3000]), zipped(b""), framed(b""))[number]
    cut = data.draw(st.integers(6, len(good) - 1))
    with pytest.raises(LayerRejected):
        undo(good[:cut])

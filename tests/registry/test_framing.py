"""Bodies: every framing, whole and a byte at a time."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.registry.framing import Ended, FramingError, body_of


class OneByte(io.BytesIO):
    """A stream whose every read gives one byte."""

    def readinto1(self, buffer):
        return self.readinto(memoryview(buffer)[:1])


class Whole(io.BytesIO):
    def readinto1(self, buffer):
        return self.readinto(buffer)


def read(stream, headers, method="GET", status=200, size=7):
    body = body_of(stream, method, status, headers)
    data, buffer = b"", memoryview(bytearray(size))
    while got := body.read_into(buffer):
        data += buffer[:got]
    assert body.read_into(buffer) == 0
    return data


CHUNKED = (("transfer-encoding", "chunked"),)
GOOD = [
    ((("content-length", "5"),), b"hello", b"hello"),
    ((("content-length", "5"), ("content-length", "5")), b"hello", b"hello"),
    ((("content-length", "0"),), b"", b""),
    ((), b"hello", b"hello"),
    (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (CHUNKED, b"1\r\nh\r\n00004;x=y\r\nello\r\n0\r\n\r\n", b"hello"),
    (CHUNKED, b"A\r\n0123456789\r\n0\r\nX: y\r\nZ: w\r\n\r\n", b"0123456789"),
    (CHUNKED, b"0\r\n\r\n", b""),
    ((("transfer-encoding", "Chunked"),), b"0\r\n\r\n", b""),
]


@pytest.mark.parametrize("kind", [Whole, OneByte])
@pytest.mark.parametrize(("headers", "raw", "data"), GOOD)
def test_good(kind, headers, raw, data):
    assert read(kind(raw), headers) == data


@pytest.mark.parametrize("kind", [Whole, OneByte])
@pytest.mark.parametrize(("headers", "raw", "data"), [one for one in GOOD if one[0] and one[1]])
def test_what_follows_is_left_alone(kind, headers, raw, data):
    stream = kind(raw + b"HTTP/1.1 next")
    assert read(stream, headers) == data
    assert stream.read() == b"HTTP/1.1 next"


@pytest.mark.parametrize("kind", [Whole, OneByte])
@pytest.mark.parametrize(("headers", "raw", "data"), [one for one in GOOD if one[0] and one[1]])
def test_every_truncation_is_noticed(kind, headers, raw, data):
    for cut in range(len(raw)):
        with pytest.raises((Ended, FramingError)):
            read(kind(raw[:cut]), headers)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n",
        b"-1\r\nx\r\n0\r\n\r\n",
        b"+1\r\nx\r\n0\r\n\r\n",
        b"0x1\r\nx\r\n0\r\n\r\n",
        b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
        b" 1\r\nx\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFF\r\nx",
        b"1\nx\n0\n\n",
        b"1\r\nxy\r\n0\r\n\r\n",
        b"1\r\nx0\r\n\r\n",
        b"1;" + b"e" * 300 + b"\r\nx\r\n0\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 17 + b"\r\n",
        b"0\r\nA: " + b"b" * 2000 + b"\r\n\r\n",
    ],
)
def test_bad_chunks(raw):
    with pytest.raises(FramingError):
        read(Whole(raw), CHUNKED)


@pytest.mark.parametrize(
    "headers",
    [
        (("content-length", "5"), ("content-length", "6")),
        (("content-length", "5"), ("transfer-encoding", "chunked")),
        (("content-length", "-5"),),
        (("content-length", "+5"),),
        (("content-length", "5, 5"),),
        (("content-length", "0x5"),),
        (("content-length", "٥"),),
        (("content-length", "1" * 30),),
        (("content-length", ""),),
        (("transfer-encoding", "gzip"),),
        (("transfer-encoding", "gzip, chunked"),),
        (("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")),
        (("transfer-encoding", "identity"),),
    ],
)
def test_bad_headers(headers):
    with pytest.raises(FramingError):
        body_of(Whole(b"hello"), "GET", 200, headers)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_no_body(method, status):
    stream = Whole(b"next")
    assert read(stream, (("content-length", "5"),), method, status) == b""
    assert stream.read() == b"next"


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_chunks_are_bytes_or_an_error(raw, size):
    with contextlib.suppress(FramingError, Ended):
        read(Whole(raw), CHUNKED, size=size)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 60))
def test_chunks_of_any_size(parts, size):
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert read(Whole(raw), CHUNKED, size=size) == b"".join(parts)

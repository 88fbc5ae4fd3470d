"""The growing file: both ends of the pipe."""

from __future__ import annotations

import fcntl
import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootfs.errors import ContentMismatch, HelperFailed, JobCancelled
from rootfs.watermarks import ABANDON, END, WATERMARK, FollowingReader, WatermarkWriter


@pytest.fixture
def pipe():
    read, write = os.pipe()
    ends = {"read": read, "write": write}
    yield ends
    for end in ends.values():
        if end is not None:
            os.close(end)


def close(pipe, end):
    os.close(pipe[end])
    pipe[end] = None


def blob_of(data):
    blob = os.memfd_create("blob")
    os.write(blob, data)
    return blob


def read_all(reader, size=1 << 16):
    pieces = []
    while piece := reader.read(size):
        pieces.append(piece)
    return b"".join(pieces)


def record(kind, count):
    return struct.pack("<BQ", kind, count)


def test_a_complete_file_is_read_whole(pipe):
    data = os.urandom(100_000)
    blob = blob_of(data)
    WatermarkWriter(pipe["write"]).end(len(data))
    reader = FollowingReader(blob, pipe["read"], size_bytes=len(data))
    assert read_all(reader, 7919) == data
    assert reader.read(1) == b""
    os.close(blob)


def test_bytes_above_the_watermark_are_not_read(pipe):
    blob = blob_of(b"finalwrong")
    writer = WatermarkWriter(pipe["write"])
    writer.advance(5)
    reader = FollowingReader(blob, pipe["read"], size_bytes=10)
    assert reader.read(100) == b"final"
    os.pwrite(blob, b"right", 5)
    writer.end(10)
    assert read_all(reader) == b"right"
    os.close(blob)


def test_a_reader_waits_for_the_writer(pipe):
    blob = blob_of(b"")
    reader = FollowingReader(blob, pipe["read"], size_bytes=4)
    found = []
    thread = threading.Thread(target=lambda: found.append(read_all(reader)))
    thread.start()
    writer = WatermarkWriter(pipe["write"])
    for place in range(4):
        os.pwrite(blob, b"abcd"[place : place + 1], place)
        writer.advance(place + 1)
    writer.end(4)
    thread.join(60)
    assert found == [b"abcd"]
    os.close(blob)


def test_an_empty_blob(pipe):
    blob = blob_of(b"")
    WatermarkWriter(pipe["write"]).end(0)
    assert FollowingReader(blob, pipe["read"], size_bytes=0).read(1) == b""
    os.close(blob)


@pytest.mark.parametrize("how", ["abandon", "close", "close after some"])
def test_a_download_that_is_given_up(pipe, how):
    blob = blob_of(b"some")
    writer = WatermarkWriter(pipe["write"])
    if how == "close after some":
        writer.advance(4)
    if how == "abandon":
        writer.abandon()
    else:
        close(pipe, "write")
    reader = FollowingReader(blob, pipe["read"], size_bytes=8)
    with pytest.raises(JobCancelled):
        read_all(reader)
    os.close(blob)


@pytest.mark.parametrize(("kind", "count"), [(WATERMARK, 11), (END, 11), (END, 9), (END, 0), (WATERMARK, 2**64 - 1)])
def test_a_blob_of_another_length_is_refused_before_it_is_read(pipe, kind, count):
    blob = blob_of(b"x" * 20)
    os.write(pipe["write"], record(kind, count))
    reader = FollowingReader(blob, pipe["read"], size_bytes=10)
    with pytest.raises(ContentMismatch, match="should have 10 bytes"):
        reader.read(100)
    os.close(blob)


def test_a_file_that_was_cut_is_refused(pipe):
    blob = blob_of(b"12345")
    WatermarkWriter(pipe["write"]).end(10)
    reader = FollowingReader(blob, pipe["read"], size_bytes=10)
    assert reader.read(100) == b"12345"
    with pytest.raises(ContentMismatch, match="cut at 5 bytes"):
        reader.read(100)
    os.close(blob)


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_an_unknown_record_is_refused(pipe, kind):
    blob = blob_of(b"x")
    os.write(pipe["write"], record(kind, 1))
    with pytest.raises(HelperFailed):
        FollowingReader(blob, pipe["read"], size_bytes=1).read(1)
    os.close(blob)


def test_a_lower_watermark_takes_nothing_back(pipe):
    blob = blob_of(b"12345")
    os.write(pipe["write"], record(WATERMARK, 4) + record(WATERMARK, 2))
    assert FollowingReader(blob, pipe["read"], size_bytes=5).read(100) == b"1234"
    os.close(blob)


def test_records_may_arrive_byte_by_byte(pipe):
    data = b"0123456789"
    blob = blob_of(data)
    reader = FollowingReader(blob, pipe["read"], size_bytes=10)
    found = []
    thread = threading.Thread(target=lambda: found.append(read_all(reader)))
    thread.start()
    for byte in record(WATERMARK, 3) + record(WATERMARK, 7) + record(END, 10):
        os.write(pipe["write"], bytes([byte]))
    thread.join(60)
    assert found == [data]
    os.close(blob)


def test_a_writer_never_blocks_and_room_for_the_end_remains(pipe):
    fcntl.fcntl(pipe["write"], fcntl.F_SETPIPE_SZ, 4096)
    writer = WatermarkWriter(pipe["write"])
    for count in range(1, 10_000):
        writer.advance(count)
    writer.end(10_000)
    blob = blob_of(b"x" * 10_000)
    assert len(read_all(FollowingReader(blob, pipe["read"], size_bytes=10_000))) == 10_000
    os.close(blob)


def test_room_for_giving_up_remains(pipe):
    fcntl.fcntl(pipe["write"], fcntl.F_SETPIPE_SZ, 4096)
    writer = WatermarkWriter(pipe["write"])
    for count in range(1, 10_000):
        writer.advance(count)
    writer.abandon()
    blob = blob_of(b"x" * 10_000)
    with pytest.raises(JobCancelled):
        read_all(FollowingReader(blob, pipe["read"], size_bytes=10_000))
    os.close(blob)


def test_a_reader_that_is_gone_is_no_error_to_the_writer(pipe):
    close(pipe, "read")
    writer = WatermarkWriter(pipe["write"])
    writer.advance(1)
    writer.end(1)
    writer.abandon()


def test_the_same_watermark_is_said_once(pipe):
    writer = WatermarkWriter(pipe["write"])
    writer.advance(5)
    writer.advance(5)
    writer.advance(3)
    assert os.read(pipe["read"], 100) == record(WATERMARK, 5)


@given(
    data=st.binary(max_size=300),
    marks=st.lists(st.integers(0, 300), max_size=20),
    size=st.integers(1, 64),
)
def test_any_sequence_of_watermarks_gives_the_same_bytes(data, marks, size):
    read, write = os.pipe()
    blob = blob_of(data)
    try:
        writer = WatermarkWriter(write)
        for mark in marks:
            writer.advance(min(mark, len(data)))
        writer.end(len(data))
        assert read_all(FollowingReader(blob, read, size_bytes=len(data)), size) == data
    finally:
        for descriptor in (read, write, blob):
            os.close(descriptor)


def test_abandon_has_its_own_record(pipe):
    WatermarkWriter(pipe["write"]).abandon()
    assert os.read(pipe["read"], 100) == record(ABANDON, 0)

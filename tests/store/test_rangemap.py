"""Which bytes of a blob are here: merging, the file of two slots, and what a torn write leaves."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.store.rangemap import MOST_RANGES, SLOT_BYTES, MapFile, RangeMap

EMPTY = RangeMap(1000, "r.example/app")
KNOWN = RangeMap(1000, "r.example/app", ((0, 500),), "r.example", '"tag"')


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_ranges_are_what_was_added_and_in_order(added):
    known, there = RangeMap(80, ""), set()
    for first, length in added:
        known = known.adding(first, first + length)
        there.update(range(first, first + length))
    assert {byte for first, end in known.ranges for byte in range(first, end)} == there
    assert all(end < after for (_, end), (after, _) in zip(known.ranges, known.ranges[1:], strict=False))
    assert known.prefix_bytes == next(byte for byte in range(82) if byte not in there)
    assert known.present_bytes == len(there)
    for first, end in ((0, 80), (7, 33), (40, 40), (50, 40)):
        holes = known.missing(first, end)
        assert {byte for one in holes for byte in range(*one)} == set(range(first, end)) - there
        assert all(one[0] < one[1] for one in holes)
        assert all(one[1] < after[0] for one, after in zip(holes, holes[1:], strict=False))


@pytest.mark.parametrize(("length", "left"), [(30, 2), (29, 1), (10, 1), (9, 0), (0, 0)])
def test_a_range_that_ends_behind_the_file_is_void(length, left):
    known = EMPTY.adding(0, 10).adding(20, 30)
    assert known.within(length).ranges == known.ranges[:left]


@pytest.mark.parametrize("wrong", [(-1, 5), (5, 5), (7, 3), (0, 1001)])
def test_a_range_that_cannot_be_is_not_added(wrong):
    assert EMPTY.adding(*wrong) == EMPTY


def test_there_are_never_more_than_so_many():
    known = RangeMap(10_000, "")
    for first in range(0, 10_000, 10):
        known = known.adding(first, first + 1)
    assert len(known.ranges) == MOST_RANGES
    assert known.ranges[0] == (0, 1)


@pytest.mark.parametrize("sync", [True, False])
def test_it_is_read_back_by_the_next_one(tmp_path, sync):
    path = str(tmp_path / "map")
    file = MapFile(path)
    assert (file.read(), file.exists) == (None, False)
    for known in (EMPTY, EMPTY.adding(0, 100), KNOWN):
        file.write(known, sync=sync)
        assert MapFile(path).read() == known
    file.close()


@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("torn", [0, 1, 5, 30, 60])
def test_a_torn_write_leaves_what_was_known_before(tmp_path, writes, torn):
    path = str(tmp_path / "map")
    file = MapFile(path)
    for step in range(writes):
        file.write(EMPTY.adding(0, 10 + step), sync=False)
    before = (tmp_path / "map").read_bytes()
    file.write(KNOWN, sync=False)
    after = (tmp_path / "map").read_bytes()
    slot = (writes + 1) % 2 * SLOT_BYTES
    mixed = before.ljust(len(after), b"\0")
    (tmp_path / "map").write_bytes(mixed[:slot] + after[slot : slot + torn] + mixed[slot + torn :])
    assert MapFile(path).read() == EMPTY.adding(0, 9 + writes)


@pytest.mark.parametrize("garbage", [b"", b"x", os.urandom(2 * SLOT_BYTES), bytes(2 * SLOT_BYTES)])
def test_garbage_is_no_map(tmp_path, garbage):
    (tmp_path / "map").write_bytes(garbage)
    assert MapFile(str(tmp_path / "map")).read() is None


def test_a_map_that_does_not_fit_is_none_afterwards(tmp_path):
    file = MapFile(str(tmp_path / "map"))
    file.write(RangeMap(5, "r" * SLOT_BYTES), sync=False)
    assert MapFile(str(tmp_path / "map")).read() is None

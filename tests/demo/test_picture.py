"""The pictures, line by line."""

from __future__ import annotations

import pytest

from cri_shim.demo.client import Listed
from cri_shim.demo.picture import Span, images_table, reuse, skipped_line, waterfall

BLOB = "sha256:" + "0123456789abcdef" * 4


def test_table_is_crictls():
    images = [Listed("sha256:" + "ab" * 32, ("r.io:5000/shop/worker:2.1", "r.io:5000/shop/web:2.1"), 4_400_000)]
    assert images_table(images) == [
        "IMAGE                   TAG                 IMAGE ID            SIZE",
        "r.io:5000/shop/web      2.1                 ababababababa       4.4MB",
        "r.io:5000/shop/worker   2.1                 ababababababa       4.4MB",
    ]


def test_table_of_an_image_without_a_tag():
    assert images_table([Listed("ff" * 32, (), 1)])[1].split() == ["<none>", "<none>", "f" * 13, "1B"]


@pytest.mark.parametrize(
    ("moment", "mark"),
    [(-1, " "), (0, "."), (9, "."), (10, "-"), (15, "="), (19, "="), (20, "#"), (29, "#"), (30, " ")],
)
def test_marks(moment, mark):
    span = Span(BLOB, 1, queued=0, fetch_start=10, fetch_end=20, unpack_start=15, unpack_end=30)
    assert span.mark(moment) == mark


def record(**row):
    return {
        "name": "r.io/a:1",
        "seconds": 0.04,
        "layers": [{"blob": BLOB, "size_bytes": 1_000_000, "reused": False} | row],
    }


def test_waterfall_row():
    times = {"queued_ms": 0, "fetch_start_ms": 10, "fetch_end_ms": 20, "unpack_start_ms": 10, "unpack_end_ms": 30}
    head, row = waterfall(record(**times), width=8)
    assert head == "r.io/a:1   1 blobs, 40 ms"
    assert row == "  0123456789ab     1MB |..==##  | fetch 10 ms, whole 30 ms"


def test_waterfall_of_a_reused_layer():
    assert waterfall(record(reused=True), width=30)[1] == "  0123456789ab     1MB |reused: already on this node  |"


def test_a_short_layer_is_not_lost():
    times = {"queued_ms": 39.9, "fetch_start_ms": 39.9, "fetch_end_ms": 40, "unpack_start_ms": 40, "unpack_end_ms": 40}
    assert "|   =|" in waterfall(record(**times), width=4)[1]


def test_phases_that_never_came_are_zero():
    assert Span.from_record({"blob": BLOB, "size_bytes": 1, "reused": True, "queued_ms": None}) == Span(
        BLOB, 1, reused=True
    )


def test_reuse():
    assert reuse(8, 5, 16_000, 10_000) == "fetched 5 of 8 layers, 10kB of 16kB: 37.5 % reused"
    assert reuse(0, 0, 0, 0) == "fetched 0 of 0 layers, 0B of 0B: 0.0 % reused"


def test_skipped():
    assert skipped_line({}) == "everything in the layers was applied"
    assert skipped_line({"owner": 3, "device": 1}).endswith("may not: device 1, owner 3")

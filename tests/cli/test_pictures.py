"""What `pull`, `pulls` and `df` draw, line by line."""

from __future__ import annotations

import pytest

from cri_shim.cli.df import render
from cri_shim.cli.progress import drawn, finished, footer, rate
from cri_shim.cli.pull import _same
from cri_shim.cli.pulls import listed, screen

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def record(**changes):
    layers = [
        {"blob": A, "size_bytes": 1000, "reused": False, "why": "fetched", "phase": "fetching", "arrived_bytes": 250,
         "host": "reg.io", "resumed_bytes": 100},
        {"blob": B, "size_bytes": 50, "reused": True, "why": "present"},
        {"blob": C, "size_bytes": 0, "reused": False, "why": "waiting"},
    ]  # fmt: skip
    return {
        "number": 7,
        "name": "reg.io/a:1",
        "phase": "layers",
        "image": "",
        "error": "",
        "started_ns": 1_700_000_000 * 10**9,
        "seconds": 2.0,
        "size_bytes": 1000,
        "arrived_bytes": 250,
        "layers": layers,
        **changes,
    }


def test_a_pull_is_drawn_with_a_bar_for_each_layer():
    assert drawn(record(), 200, 500.0) == [
        "reg.io/a:1: layers",
        f"{'a' * 12}: fetching     |{'=' * 10}{'-' * 30}| 250B/1kB from reg.io, 100B were here",
        f"{'b' * 12}: here already |{'=' * 40}| 50B/50B",
        f"{'c' * 12}: waiting      |{'=' * 40}| 0B/0B",
        "elapsed: 2.0 s  total: 250B of 1kB  (500B/s)  left: 2 s",
    ]


def test_the_bar_leaves_room_for_who_sends_it():
    layers = [{**record()["layers"][0], "host": "registry.example.com:5000", "resumed_bytes": 0}]
    (_, row, _) = drawn(record(layers=layers), 80)
    assert len(row) == 80
    assert row == f"{'a' * 12}: fetching     |==---------| 250B/1kB from registry.example.com:5000"


@pytest.mark.parametrize("width", [1, 20, 60, 80])
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    assert max(map(len, drawn(record(), width))) <= width


def test_each_layer_is_told_once_when_it_is_done():
    told = set()
    assert list(finished(record(), told)) == [f"layer {'b' * 12}: here already, 50B"]
    done = record()
    done["layers"][0]["phase"] = "done"
    assert list(finished(done, told)) == [f"layer {'a' * 12}: done, 1kB from reg.io, 100B were here"]
    assert list(finished(done, told)) == []


def test_the_rate_is_told_of_one_pull_only():
    before, now = record(), record(seconds=4.0, arrived_bytes=1000)
    assert rate(before, now) == 375.0
    assert rate(None, now) == 0.0
    assert rate({**before, "started_ns": 1}, now) == 0.0
    assert rate(now, now) == 0.0
    assert rate(now, before) == 0.0
    assert footer(now, 375.0) == "elapsed: 4.0 s  total: 1kB of 1kB  (375B/s)"


PAGE = {
    "running": [record()],
    "recent": [record(phase="done", name="reg.io/old:1"), record(phase="failed", error="no such tag", layers=[])],
}


def test_pulls_are_listed_with_the_newest_first_and_why_they_failed():
    assert listed(PAGE, 2) == [
        "ID   IMAGE          STATE    STARTED                TOOK   FETCHED   LAYERS",
        "7    reg.io/a:1     layers   2023-11-14T22:13:20Z   2.0s   150B      3, 1 reused",
        "7    reg.io/a:1     failed   2023-11-14T22:13:20Z   2.0s   0B        0",
        "  no such tag",
        "7    reg.io/old:1   done     2023-11-14T22:13:20Z   2.0s   150B      3, 1 reused",
    ]
    assert len(listed(PAGE, 0)) == len(listed(PAGE, -1)) == 2


def test_the_screen_shows_what_runs_at_its_rate_and_what_ended():
    before = {record()["started_ns"]: record(seconds=1.0, arrived_bytes=0)}
    lines = list(screen(PAGE, before, 100, 1))
    assert lines[0] == "1 pull running"
    assert lines[2:7] == drawn(record(), 100, 250.0)
    assert lines[-1] == "  no such tag"
    assert next(screen({"running": [], "recent": []}, {}, 80, 1)) == "0 pulls running"


def test_df_for_people():
    image = {"name": "a:1", "size_bytes": 3000, "shared_bytes": 1000, "unique_bytes": 2000}
    other = {"name": "b:1", "size_bytes": 5000, "shared_bytes": 1000, "unique_bytes": 4000}
    page = {
        "root": "/r", "images": [image, other], "totals_bytes": {"layers of images": 7000}, "used_bytes": 7000,
        "filesystem": {"size_bytes": 28_000, "free_bytes": 14_000},
    }  # fmt: skip
    assert list(render(page)) == [
        "IMAGE   SIZE   SHARED   UNIQUE",
        "b:1     5kB    1kB      4kB",
        "a:1     3kB    1kB      2kB",
        "",
        "KIND               SIZE",
        "layers of images   7kB",
        "",
        f"/r  [{'#' * 10}{'=' * 10}{'.' * 20}]",
        "# images 7kB   = others 7kB   . free 14kB of 28kB",
    ]


@pytest.mark.parametrize(
    ("full", "given", "same"),
    [
        ("docker.io/library/nginx:latest", "nginx", True),
        ("docker.io/library/nginx:1", "nginx:1", True),
        ("docker.io/library/nginx:latest", "nginx:1", False),
        ("reg.io:5000/a:latest", "reg.io:5000/a", True),
        ("reg.io/a@sha256:1", "reg.io/a@sha256:1", True),
        ("reg.io/xnginx:latest", "nginx", False),
    ],
)
def test_a_pull_is_found_by_the_name_that_was_given(full, given, same):
    assert _same(full, given) is same

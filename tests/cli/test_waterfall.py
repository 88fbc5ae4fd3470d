"""The waterfall of a pull: as text, as SVG, as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, fromstring

import pytest

from cri_shim.cli.pulls import clean
from cri_shim.cli.waterfallsvg import _round_step, page, svg
from cri_shim.waterfall import Span, bar, critical, drawn, fetched_bytes, head

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
SVG = "{http://www.w3.org/2000/svg}"


def layer(blob, begin=0.0, **changes):
    times = {
        "queued_ms": begin,
        "fetch_start_ms": begin + 100,
        "unpack_start_ms": begin + 200,
        "fetch_end_ms": begin + 400,
    }
    row = {
        "blob": blob,
        "size_bytes": 1000,
        "reused": False,
        "why": "fetched",
        "arrived_bytes": 1000,
        "resumed_bytes": 0,
    }
    return {**row, "host": "reg.io", "credential": "request", **times, "unpack_end_ms": begin + 600, **changes}


def record(*layers, **changes):
    steps = [
        ("resolving", 0.0, 100.0),
        ("layers", 100.0, 900.0),
        ("committing", 900.0, 950.0),
        ("publishing", 950.0, 1000.0),
    ]
    return {
        "number": 7,
        "name": "reg.io/app:1",
        "phase": "done",
        "image": A,
        "error": "",
        "host": "reg.io",
        "credential": "request",
        "seconds": 1.0,
        "layers": list(layers),
        "steps": [{"phase": phase, "begin_ms": begin, "end_ms": end} for phase, begin, end in steps],
        **changes,
    }


PRESENT = {"blob": C, "size_bytes": 50, "reused": True, "why": "present"}


def test_the_whole_picture():
    joined = layer(B, -300.0, reused=True, why="joined", resumed_bytes=100)
    lines = list(drawn(record(layer(A, 100.0), joined, PRESENT), 64))
    assert lines == [
        "reg.io/app:1: done, 1.000 s",
        "3 layers, 2 reused; 1kB fetched, 1kB/s",
        "manifest from reg.io, credential: request",
        f"image {A}",
        "",
        "  manifest              |*         | 100 ms",
        f"  {'a' * 12}     1kB  | .-==##   | 600 ms, fetch 300  < last",
        f"  {'b' * 12}     1kB  |=##       | 300 ms, by another pull",
        f"  {'c' * 12}     50B  |here already|",
        "  record                |         *| 50 ms",
        "  hand-off              |         *| 50 ms",
        "",
        "  waiting .   fetching -   fetching and unpacking =   unpacking, syncing #",
        "",
        "  LAYER          SIZE   FROM                     CREDENTIAL",
        f"  {'a' * 12}   1kB    reg.io                   request",
        f"  {'b' * 12}   1kB    reg.io, 100B were here   request",
        f"  {'c' * 12}   50B    here already",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_of_a_picture_is_longer_than_the_terminal_is_wide(width):
    lines = list(drawn(record(layer(A), layer(B, 100.0), PRESENT), width))
    assert max(map(len, lines)) <= width


def test_who_waited_for_another_pull_fetched_nothing():
    waited = layer(B, reused=True, why="joined", host="", credential="", fetch_start_ms=500.0, fetch_end_ms=500.0,
                   unpack_start_ms=500.0, unpack_end_ms=500.0)  # fmt: skip
    lines = list(drawn(record(waited), 64))
    assert f"  {'b' * 12}     1kB  |.....     | 500 ms, by another pull" in lines
    assert lines[-1].split() == ["b" * 12, "1kB", "by", "another", "pull"]
    assert fetched_bytes(record(waited)) == 0


def test_what_runs_still_or_failed():
    begun = layer(A, fetch_end_ms=None, unpack_end_ms=None, unpack_start_ms=None)
    lines = list(drawn(record(begun, layer(B, queued_ms=None, fetch_start_ms=None, fetch_end_ms=None,
                                           unpack_start_ms=None, unpack_end_ms=None, host="", credential=""),
                              error="no room", image="", phase="failed"), 80))  # fmt: skip
    assert "failed: no room" in lines
    assert next(line for line in lines if "a" * 12 in line).endswith("| not whole")
    assert "not begun" in next(line for line in lines if "b" * 12 in line)
    assert lines[-1].split() == ["b" * 12, "1kB", "nobody", "yet"]


def test_a_pull_without_layers_has_no_table_of_them():
    lines = list(
        drawn(record(host="", steps=[{"phase": "resolving", "begin_ms": 0.0, "end_ms": 0.0}], seconds=0.0), 80)
    )
    assert not any("LAYER" in line for line in lines)
    assert any(line.startswith("  manifest ") for line in lines)


def test_the_last_layer_is_the_one_that_the_others_waited_for():
    late = layer(B, 300.0)
    assert critical(record(layer(A), late, PRESENT)) is late
    assert critical(record(late)) is None


def test_only_what_this_pull_brought_counts_as_fetched():
    layers = (layer(A, resumed_bytes=400), layer(B, reused=True, why="joined"), PRESENT)
    assert fetched_bytes(record(*layers)) == 600
    assert head(record(PRESENT))[1] == "1 layers, 1 reused; 0B fetched"


def test_nothing_that_took_place_is_left_without_a_mark():
    assert bar(Span(A, 1, fetch_start=500.0, unpack_end=0.0), 1000.0, 4) == "  = "


def drawing(of) -> Element:
    return fromstring(svg(of))


def test_the_svg_has_a_box_for_every_part_of_every_layer():
    root = drawing(record(layer(A, 100.0), PRESENT))
    boxes = [box for box in root.iter(f"{SVG}rect") if box.get("height") == "18"]
    assert len(boxes) == 3 + 4  # three steps; waiting, fetching, both, unpacking
    left, right = (
        [float(box.get("x")) for box in boxes],
        [float(box.get("x")) + float(box.get("width")) for box in boxes],
    )
    assert min(left) == 190
    assert max(right) <= 960 - 170 + 1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"manifest", "a" * 12, "here already", "record", "hand-off", "600 ms", "0 ms", "1 s"} - set(texts) == {"1 s"}


@pytest.mark.parametrize(
    ("total_ms", "step"),
    [(0.001, 0.001), (6, 1), (6.1, 2), (1000, 200), (3253, 1000), (59_000, 10_000), (86_400_000, 2e7)],
)
def test_the_axis_has_round_numbers(total_ms, step):
    assert _round_step(total_ms) == pytest.approx(step)


class Loads(HTMLParser):
    """Everything in a page that would be loaded or run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [tag] * (tag in {"script", "link", "img", "iframe", "object", "embed", "image", "use", "base"})
        self.found += [name for name, value in attrs if name.startswith("on") or name in {"src", "href", "xlink:href"}]


HOSTILE = '"><script src="http://x/">&\x1b[31m</style>'


@pytest.mark.parametrize("text", ["reg.io/a:1", HOSTILE])
def test_a_page_loads_nothing_and_runs_nothing(text):
    whole = record(layer(A, host=text, credential=text), name=text, host=text, credential=text, error=text)
    for made in (svg(clean(whole)), page(clean(whole))):
        loads = Loads()
        loads.feed(made)
        assert loads.found == []
        assert not re.search(r"url\(|@import|\x1b", made)
        urls = re.findall(r"https?://[^\s\"<]*", made)
        assert [url for url in urls if not url.startswith(("http://www.w3.org/2000/svg", "http://x/"))] == []
    fromstring(svg(clean(whole)))


def test_a_long_name_leaves_room_for_what_is_beside_it():
    root = drawing(record(name="n" * 300))
    title = next(text.text for text in root.iter(f"{SVG}text"))
    assert title.startswith("n" * 79 + "…: done")


def test_texts_of_peers_do_not_reach_the_terminal():
    assert clean({"a": ["x\x1b[2J", 1, None], "b": {"c": "\n"}}) == {"a": ["x\\x1b[2J", 1, None], "b": {"c": "\\n"}}

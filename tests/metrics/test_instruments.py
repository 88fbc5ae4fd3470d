"""The text format, read by the parser of Prometheus' own client library."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri_shim.metrics.catalog import PREFIX, Metrics
from cri_shim.metrics.instruments import MOST_SERIES, OTHER, Counter, Gauge, Histogram, exposition


def read(*families):
    """Every sample by its name and labels."""
    page = exposition(families)
    assert page.endswith("\n")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_counter_adds_and_a_gauge_is_set():
    counter, gauge = Counter("a_total", "A."), Gauge("b", "B.", ("kind",))
    assert read(counter, gauge) == {("a_total", ()): 0}
    counter.add()
    counter.add(by=2.5)
    gauge.set("x", to=3)
    gauge.set("x", to=-1)
    assert read(counter, gauge) == {("a_total", ()): 3.5, ("b", (("kind", "x"),)): -1}
    counter.read(at=9)
    assert read(counter) == {("a_total", ()): 9}


def test_buckets_count_what_is_at_most_their_bound():
    histogram = Histogram("h", "H.", (0.5, 1, 2.5), ("phase",))
    for number in (0, 0.5, 0.6, 1, 3):
        histogram.observe(number, "total")
    label = ("phase", "total")
    assert read(histogram) == {
        ("h_bucket", (("le", "0.5"), label)): 2,
        ("h_bucket", (("le", "1"), label)): 4,
        ("h_bucket", (("le", "2.5"), label)): 4,
        ("h_bucket", (("le", "+Inf"), label)): 5,
        ("h_sum", (label,)): 5.1,
        ("h_count", (label,)): 5,
    }


@pytest.mark.parametrize("text", ['"', "\\", "\n", '\\"\n{}= ,', "ünïcode", "a" * 128])
def test_a_label_may_hold_anything(text):
    counter = Counter("c_total", "C.", ("label",))
    counter.add(text)
    assert read(counter) == {("c_total", (("label", text),)): 1}


def test_series_are_bounded_and_nothing_is_lost():
    counter, histogram = Counter("c_total", "C.", ("who",)), Histogram("h", "H.", (1,), ("who",))
    for number in range(MOST_SERIES + 50):
        counter.add(f"peer {number}")
        histogram.observe(1, f"peer {number}")
    counter.add("peer 0")
    found = read(counter)
    assert len(found) == MOST_SERIES + 1
    assert found["c_total", (("who", OTHER),)] == 50
    assert found["c_total", (("who", "peer 0"),)] == 2
    assert read(histogram)["h_count", (("who", OTHER),)] == 50


def test_a_long_label_is_cut():
    counter = Counter("c_total", "C.", ("who",))
    counter.add("x" * 1000)
    assert read(counter) == {("c_total", (("who", "x" * 128),)): 1}


def test_the_labels_must_be_as_many():
    with pytest.raises(ValueError, match="was given 1"):
        Counter("c_total", "C.", ("a", "b")).add("x")


def test_threads_lose_no_count():
    counter = Counter("c_total", "C.", ("who",))
    threads = [threading.Thread(target=lambda: [counter.add("x") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(counter) == {("c_total", (("who", "x"),)): 8000}


def test_every_metric_has_a_name_as_prometheus_wants_it():
    families = Metrics().families()
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    for family in families:
        assert family.name.startswith((PREFIX, "process_"))
        assert family.name.endswith("_total") == isinstance(family, Counter), family.name
        assert family.sentence.endswith("."), family.name
    types = {family.name: family.type for family in text_string_to_metric_families(Metrics().page())}
    assert types == {family.name.removesuffix("_total"): family.kind for family in families}

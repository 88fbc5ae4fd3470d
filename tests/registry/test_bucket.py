"""The token bucket on a clock that only the test moves: the rate, the bound, the shares; and threads that wait for it."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri_shim.errors import Cancelled
from cri_shim.registry.bucket import LARGEST_PORTION_BYTES, TAGS, Bucket, Portions, burst_bytes
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.flow import HEAVIEST, LIGHTEST, ORDINARY, Flow, Payers

MIB = 1 << 20


SECOND = 1_000_000_000


class Clock:
    """Nanoseconds."""

    def __init__(self) -> None:
        self.now = 50 * SECOND

    def __call__(self) -> int:
        return self.now


def shares(rate: int, connections: dict[Flow, int], seconds: float) -> dict[Flow, int]:
    """What flows get that never stop asking, with so many connections each."""
    clock = Clock()
    portions = Portions(rate, clock)
    got = dict.fromkeys(connections, 0)
    for flow, number in connections.items():
        for _ in range(number):
            portions.enter(flow, MIB)
    end = clock.now + int(seconds * SECOND)
    while clock.now < end:
        clock.now += portions.wait_ns(portions.first())
        for ticket in portions.serve():
            got[ticket.flow] += ticket.granted
            portions.enter(ticket.flow, MIB)
    return got


def test_the_rate_and_the_bound_hold_in_every_span_of_time():
    rate, clock = 10 * MIB, Clock()
    portions, flow, grants = Portions(rate, clock), Flow("a"), []
    for step in range(400):
        portions.enter(flow, MIB if step % 3 else 1000)
        clock.now += (0, SECOND // 1000, SECOND // 5)[step % 3]
        grants += [(clock.now, ticket.granted) for ticket in portions.serve()]
    for first in range(len(grants)):
        for last in range(first, len(grants)):
            passed = sum(granted for _, granted in grants[first : last + 1])
            assert passed * SECOND <= burst_bytes(rate) * SECOND + rate * (grants[last][0] - grants[first][0])
    assert len(grants) + portions.waiting == 400
    assert portions.waiting < 5


def test_after_a_pause_no_more_than_the_bound_passes_at_once():
    clock = Clock()
    portions, flow = Portions(10 * MIB, clock), Flow("a")
    clock.now += 3600 * SECOND
    for _ in range(50):
        portions.enter(flow, MIB)
    assert sum(ticket.granted for ticket in portions.serve()) == burst_bytes(10 * MIB)


def test_the_rate_is_used_up():
    one = Flow("a")
    assert shares(10 * MIB, {one: 3}, 60.0)[one] == pytest.approx(600 * MIB, rel=0.01)


@pytest.mark.parametrize("rate", [20_000, MIB, 100 * MIB])
def test_images_share_alike_whatever_the_number_of_their_connections(rate):
    one, six, fifty = Flow("one"), Flow("six"), Flow("fifty")
    got = shares(rate, {fifty: 50, six: 6, one: 1}, 120.0)
    assert max(got.values()) - min(got.values()) <= LARGEST_PORTION_BYTES


def test_shares_go_by_weight_and_the_lightest_is_served_too():
    system, ordinary, light = Flow("system", 400), Flow("ordinary", 100), Flow("light", LIGHTEST)
    got = shares(10 * MIB, {light: 8, ordinary: 8, system: 1}, 300.0)
    assert got[system] / got[ordinary] == pytest.approx(4, rel=0.02)
    assert got[ordinary] / got[light] == pytest.approx(10, rel=0.02)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(LIGHTEST, HEAVIEST), st.integers(1, 9)), min_size=2, max_size=6))
def test_any_weights(given):
    flows = {Flow(str(number), weight): connections for number, (weight, connections) in enumerate(given)}
    total = sum(flow.weight for flow in flows)
    got = shares(10 * MIB, flows, 40.0)
    for flow, sent in got.items():
        # One portion more or less, as seen from the lightest.
        assert abs(sent / sum(got.values()) - flow.weight / total) < 0.05


def test_what_one_leaves_the_others_use():
    clock = Clock()
    portions, busy, slow = Portions(10 * MIB, clock), Flow("busy"), Flow("slow")
    sent = {busy: 0, slow: 0}
    for _ in range(2):
        portions.enter(busy, MIB)
    for step in range(1000):
        if step % 100 == 0:
            portions.enter(slow, 1000)
        clock.now += SECOND // 40
        for ticket in portions.serve():
            sent[ticket.flow] += ticket.granted
            if ticket.flow is busy:
                portions.enter(busy, MIB)
    assert sent == {busy: pytest.approx(250 * MIB, rel=0.02), slow: 10_000}


def test_who_comes_late_waits_for_nobodys_past():
    clock = Clock()
    portions, early, late = Portions(MIB, clock), Flow("early"), Flow("late")
    for _ in range(100):
        portions.enter(early, MIB)
        clock.now += SECOND
        portions.serve()
    got = {early: 0, late: 0}
    for flow in (early, early, late):
        portions.enter(flow, MIB)
    for _ in range(200):
        clock.now += portions.wait_ns(portions.first())
        for ticket in portions.serve():
            got[ticket.flow] += ticket.granted
            portions.enter(ticket.flow, MIB)
    assert abs(got[early] - got[late]) <= burst_bytes(MIB)


def test_what_was_not_used_is_given_back_but_not_beyond_the_bound():
    clock = Clock()
    portions, flow = Portions(MIB, clock), Flow("a")
    portions.enter(flow, MIB)
    clock.now += SECOND
    (ticket,) = portions.serve()
    portions.give_back(flow, ticket.granted)
    portions.enter(flow, MIB)
    assert [again.granted for again in portions.serve()] == [ticket.granted]
    portions.give_back(flow, 100 * MIB)
    for _ in range(50):
        portions.enter(flow, MIB)
    assert sum(again.granted for again in portions.serve()) == burst_bytes(MIB)


def test_a_weight_that_changes_counts_at_once():
    clock = Clock()
    portions, rising, other = Portions(MIB, clock), Flow("rising"), Flow("other")
    for flow in (rising, other) * 3:
        portions.enter(flow, MIB)
    got = {rising: 0, other: 0}
    with rising.claimed(400):
        for _ in range(500):
            clock.now += portions.wait_ns(portions.first())
            for ticket in portions.serve():
                got[ticket.flow] += ticket.granted
                portions.enter(ticket.flow, MIB)
    assert got[rising] / got[other] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("pause", [SECOND, SECOND // 1000])
def test_of_many_flows_only_those_that_matter_are_remembered(pause):
    clock = Clock()
    portions = Portions(1000 * MIB, clock)
    for number in range(3 * TAGS):
        portions.enter(Flow(str(number)), MIB)
        clock.now += pause
        portions.serve()
        assert len(portions._tags) <= TAGS


def test_a_layer_is_paid_by_the_heaviest_that_waits_for_it_then_by_the_last_that_did():
    light, heavy, payers = Flow("light", 50), Flow("heavy", 400), Payers()
    assert payers.heaviest.weight == ORDINARY
    with payers.shared_by(light):
        assert payers.heaviest is light
        with payers.shared_by(heavy), payers.shared_by(light):
            assert payers.heaviest is heavy
        assert payers.heaviest is light
    assert payers.heaviest is light


def test_a_flow_is_as_heavy_as_the_heaviest_who_waits():
    flow = Flow("a")
    with flow.claimed(50):
        assert flow.weight == 50
        with flow.claimed(400):
            assert flow.weight == 400
        assert flow.weight == 50
    assert flow.weight == 50


# Threads


class Waits:
    """In place of waiting: notes for how long somebody would, and lets nobody sleep longer than until there is news."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[float | None] = []
        self.changed = threading.Condition()

    def __call__(self, news: threading.Event, seconds: float | None) -> None:
        with self.changed:
            self.asked.append(seconds)
            self.changed.notify_all()
        news.wait(20)

    def until(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= number, 20)


def test_of_those_who_wait_one_has_an_end_to_it_and_nobody_looks_twice():
    clock = Clock()
    waits = Waits(clock)
    bucket = Bucket(MIB, clock, waits)
    got, threads = [], []
    for number in range(5):
        flow = Flow(str(number))
        threads.append(threading.Thread(target=lambda flow=flow: got.append(bucket.take(flow, 1000, Cancel()))))
        threads[-1].start()
        waits.until(number + 1)
    assert [seconds is not None for seconds in waits.asked] == [True, False, False, False, False]
    assert bucket.waiting == 5
    clock.now += 60 * SECOND
    bucket.give_back(Flow("first"), 1)  # somebody comes by: all five can be served
    for thread in threads:
        thread.join(20)
    assert got == [1000] * 5
    assert len(waits.asked) == 5
    assert bucket.waiting == 0


def test_who_is_cancelled_leaves_and_the_next_has_its_turn():
    clock = Clock()
    waits = Waits(clock)
    bucket, first, second = Bucket(MIB, clock, waits), Cancel(), Cancel()
    outcomes: dict[str, object] = {}

    def take(name: str, cancel: Cancel) -> None:
        try:
            outcomes[name] = bucket.take(Flow(name), 1000, cancel)
        except Cancelled as error:
            outcomes[name] = error

    threads = []
    for name, cancel in (("first", first), ("second", second)):
        threads.append(threading.Thread(target=take, args=(name, cancel)))
        threads[-1].start()
        waits.until(len(threads))
    first.cancel()
    threads[0].join(20)
    waits.until(3)
    assert isinstance(outcomes["first"], Cancelled)
    assert waits.asked[2] is not None  # the second has become the next, and now has an end to its wait
    clock.now += SECOND
    bucket.give_back(Flow("x"), 1)
    threads[1].join(20)
    assert outcomes["second"] == 1000


def test_a_deadline_ends_a_wait():
    clock = Clock()

    def wait(news: threading.Event, seconds: float) -> None:
        clock.now += int(seconds * SECOND)

    cancel = Cancel(deadline=60.0, clock=lambda: clock.now / SECOND)
    bucket = Bucket(1000, clock, wait)
    assert bucket.take(Flow("a"), 9000, cancel) == 9000
    assert clock.now == 59 * SECOND
    with pytest.raises(Cancelled, match="deadline"):
        bucket.take(Flow("a"), 1001, cancel)
    assert bucket.waiting == 0
    assert clock.now == 60 * SECOND


def test_another_rate_counts_for_those_who_wait():
    clock = Clock()
    waits = Waits(clock)
    bucket = Bucket(1000, clock, waits)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(bucket.take(Flow("a"), 16_000, Cancel())))
    thread.start()
    waits.until(1)
    assert waits.asked == [pytest.approx(16.0)]
    bucket.follow(16_000)
    waits.until(2)
    assert waits.asked[1] == pytest.approx(1.0)
    bucket.follow(0)
    thread.join(20)
    assert got == [16_000]
    assert bucket.take(Flow("a"), 1 << 40, Cancel()) == 1 << 40


@pytest.mark.parametrize("before", [0, MIB])
def test_a_rate_that_begins_begins_with_an_empty_bucket(before):
    clock = Clock()
    portions = Portions(before, clock)
    portions.follow(MIB)
    portions.enter(Flow("a"), 1000)
    assert portions.serve() == []


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_who_waits_as_long_as_it_is_told_to_has_enough(rate, most):
    clock = Clock()
    portions = Portions(rate, clock)
    ticket = portions.enter(Flow("a"), most)
    clock.now += portions.wait_ns(ticket) - 1
    assert portions.serve() == []
    clock.now += 1
    assert portions.serve() == [ticket]


def test_many_threads_on_the_real_clock_get_no_more_than_the_rate_allows():
    rate, portion = 8 * MIB, 32 << 10
    begun = time.monotonic_ns()
    bucket = Bucket(rate)
    flows = [Flow("many")] * 5 + [Flow("one")]
    got: list[int] = []

    def work(flow: Flow) -> None:
        got.extend(bucket.take(flow, portion, Cancel()) for _ in range(8))

    threads = [threading.Thread(target=work, args=(flow,)) for flow in flows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [portion] * 48
    assert (time.monotonic_ns() - begun) * rate >= sum(got) * SECOND

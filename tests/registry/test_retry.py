"""Pauses, Retry-After, giving up."""

from __future__ import annotations

import threading

import pytest

from cri_shim.errors import Cancelled
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.retry import Pace, pause_seconds, retry_after

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2.0),
        ("60", 60.0),
        ("61", 60.0),
        ("9999999999999999999", 60.0),
        ("99999999999999999999", None),
        ("0", None),
        ("-1", None),
        ("1.5", None),
        ("1e9", None),
        ("1_0", None),
        ("٢", None),
        ("", None),
        ("soon", None),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 23:13:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:13:20 GMT", None),
        ("Mon, 01 Jan 1970 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after(value, NOW) == seconds


def test_pauses_grow_and_are_bounded():
    assert [pause_seconds(n, 1.0) for n in range(8)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert pause_seconds(0, 0.0) == pytest.approx(0.1)
    assert pause_seconds(10**6, 1.0) == 10.0


def test_the_default_sleep_ends_with_the_cancel():
    cancel = Cancel()
    began = threading.Event()

    def act():
        began.set()
        raise HostFailed("no", again=True, after_seconds=60)

    threading.Thread(target=lambda: (began.wait(20), cancel.cancel())).start()
    with pytest.raises(Cancelled):
        Pace().patiently("host", cancel, act)


def test_a_real_pause_is_short():
    tries = []

    def act():
        tries.append(1)
        if len(tries) < 2:
            raise HostFailed("no", again=True, after_seconds=0.001)
        return "done"

    assert Pace(chance=lambda: 0.0).patiently("host", Cancel(), act) == "done"


def test_a_failure_that_will_not_pass_is_not_repeated():
    tries = []

    def act():
        tries.append(1)
        raise HostFailed("no")

    with pytest.raises(HostFailed):
        Pace().patiently("host", Cancel(), act)
    assert len(tries) == 1


def test_hosts_are_forgotten():
    pace = Pace(sleep=lambda seconds, cancel: None)
    for number in range(3000):
        pace.rest(f"host{number}", HostFailed("busy", busy=True, after_seconds=1.0), 0, Cancel())
    assert len(pace._until) == 1024


def test_who_waits_for_a_host_waits_on_when_it_is_closed_for_longer_meanwhile():
    now, slept = [100.0], []

    def sleep(seconds, cancel):
        slept.append(seconds)
        now[0] += seconds
        if len(slept) == 1:  # somebody who had asked before hears only now
            pace.hold("host", HostFailed("busy", busy=True, after_seconds=7.0))

    pace = Pace(clock=lambda: now[0], sleep=sleep, chance=lambda: 0.0)
    pace.hold("host", HostFailed("busy", busy=True, after_seconds=5.0))
    pace.await_turn("host", Cancel())
    assert slept == [5.0, 7.0]


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (HostFailed("busy", again=True, busy=True, after_seconds=30), 30.0),
        (HostFailed("busy", again=True, busy=True), 0.0),
        (HostFailed("slow down", again=True, after_seconds=30), 0.0),
    ],
)
def test_what_a_host_asked_for_holds_also_when_who_heard_it_gives_up(failure, seconds):
    slept = []

    def act():
        raise failure

    pace = Pace(
        clock=lambda: 100.0 + sum(slept), sleep=lambda seconds, cancel: slept.append(seconds), chance=lambda: 0.0
    )
    with pytest.raises(HostFailed):
        pace.patiently("host", Cancel(), act, attempts=1)
    assert slept == []
    pace.await_turn("host", Cancel())
    assert sum(slept) == seconds


# Cancel


def test_acts_are_done_once_and_only_while_inside():
    cancel, done = Cancel(), []
    with cancel.doing(lambda: done.append("outside")):
        pass
    with cancel.doing(lambda: done.append("inside")):
        cancel.cancel()
        cancel.cancel()
    assert done == ["inside", "inside"]
    with pytest.raises(Cancelled), cancel.doing(lambda: done.append("after")):
        pytest.fail("got in")
    assert cancel.cancelled


def test_a_deadline():
    now = [0.0]
    cancel = Cancel(deadline=5.0, clock=lambda: now[0])
    assert cancel.remaining_seconds() == 5.0
    cancel.check()
    now[0] = 5.0
    assert cancel.cancelled
    with pytest.raises(Cancelled, match="deadline"):
        cancel.wait(10)
    assert Cancel().remaining_seconds() is None

"""Bytes per second of layers, on a clock that moves only while everybody waits: measured, shared, and not blamed."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import Cancelled
from cri_shim.registry.cancel import Branch, Cancel
from cri_shim.registry.client import Client
from cri_shim.registry.connections import Bounds
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.flow import Flow, Payers
from cri_shim.registry.hosts import Hosts
from cri_shim.registry.rates import RateLimits, Rates
from cri_shim.registry.retry import Pace
from cri_shim.registry.terms import Terms
from cri_shim.registry.transport import Transport
from cri_shim.registry.wire import Limits
from cri_shim.registry.workers import Several
from cri_shim.store.ingest import Arrival, Ingest
from tests.fakes.misbehaviour import chunked, cut, redirect
from tests.fakes.registry import FakeRegistry

MIB = 1 << 20
KIB = 1 << 10
SECOND = 1_000_000_000
PATIENCE = 60


class Together:
    """Time that passes only when each of *parties* waits: then it is at once as late as the first of them waits for."""

    def __init__(self, parties: int) -> None:
        self.now = 7 * SECOND
        self._parties = parties
        self._waiting: dict[threading.Event, int | None] = {}
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self.now

    def seconds(self) -> float:
        return self.now / SECOND

    def wait(self, news: threading.Event, seconds: float | None) -> None:
        with self._lock:
            self._waiting[news] = None if seconds is None else self.now + round(seconds * SECOND)
            self._move()
        assert news.wait(PATIENCE)
        with self._lock:
            del self._waiting[news]

    @contextmanager
    def party(self):
        """One of them, which leaves in the end."""
        try:
            yield
        finally:
            with self._lock:
                self._parties -= 1
                self._move()

    def _move(self) -> None:
        if len(self._waiting) < self._parties or any(news.is_set() for news in self._waiting):
            return
        ends = [(end, news) for news, end in self._waiting.items() if end is not None]
        if ends:
            self.now, news = min(ends, key=lambda end: end[0])
            news.set()


@dataclass
class Sink:
    """Takes bytes, and has when the last came, and how many there were at every time."""

    clock: Together
    data: bytearray = field(default_factory=bytearray)
    at: list[tuple[int, int]] = field(default_factory=list)

    @property
    def position_bytes(self) -> int:
        return len(self.data)

    def append(self, data: bytes | memoryview) -> None:
        self.data += data
        self.at.append((self.clock.now, len(self.data)))

    def restart(self) -> None:
        self.data.clear()

    def validator_of(self, host: str) -> str:
        return ""

    def vouch(self, host: str, validator: str) -> None:
        """Forget it."""

    def bytes_at(self, now: int) -> int:
        return max((size for time, size in self.at if time <= now), default=0)


@dataclass
class Bench:
    """A client under limits, on a clock of its own."""

    certs: object
    kit: object
    clock: Together
    limits: RateLimits
    wire: Limits = field(default_factory=Limits)
    several: dict = field(default_factory=dict)
    progress_seconds: float = 60.0

    def __post_init__(self) -> None:
        self.rates = Rates(clock=self.clock, wait=self.clock.wait)
        self.transport = Transport(self.wire, clock=self.clock.seconds)
        self.client = Client(
            self.transport,
            Hosts(str(self.certs)),
            pace=Pace(clock=self.clock.seconds, sleep=lambda seconds, cancel: cancel.check()),
            clock=self.clock.seconds,
            terms=Terms(rates=self.limits, progress_seconds=self.progress_seconds, connections=Bounds(per_blob=4)),
            several=Several(rates=self.rates, **self.several),
        )

    def download(self, registry, data: bytes, sink, payers: Payers | None = None, cancel: Cancel | None = None):
        name = self.kit.reference(f"{registry.host}/team/app")
        blob = self.kit.descriptor(data)
        return self.client.download(name, blob, ANONYMOUS, sink, cancel or Cancel(), payers=payers)


@pytest.fixture
def make(desk, kit):
    made: list[Bench] = []

    def make(parties: int, limits: RateLimits, **more) -> Bench:
        made.append(Bench(desk.certs, kit, Together(parties), limits, **more))
        return made[-1]

    yield make
    for bench in made:
        bench.transport.close()


def side_by_side(*pulls) -> None:
    errors: list[BaseException] = []

    def guarded(pull) -> None:
        try:
            pull()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(pull,)) for pull in pulls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []


@pytest.mark.parametrize(("weight", "part"), [(100, 1 / 2), (400, 4 / 5), (1000, 10 / 11)])
def test_two_pulls_have_shares_by_weight_and_what_is_left_is_used(make, registry, weight, part):
    heavy_data, light_data = b"h" * (6 * MIB), b"l" * (6 * MIB)
    for data in (heavy_data, light_data):
        registry.add_blob("team/app", data)
    bench = make(2, RateLimits(total=MIB))
    clock = bench.clock
    heavy, light = Sink(clock), Sink(clock)

    def pull(data, sink, weight):
        with clock.party():
            bench.download(registry, data, sink, Payers(Flow("image", weight)))

    begun = clock.now
    side_by_side(lambda: pull(heavy_data, heavy, weight), lambda: pull(light_data, light, 100))
    assert (bytes(heavy.data), bytes(light.data)) == (heavy_data, light_data)
    for seconds in (2, 4, 6):
        have = [sink.bytes_at(begun + seconds * SECOND) for sink in (heavy, light)]
        assert sum(have) == pytest.approx(seconds * MIB, abs=2 * 105 * KIB)  # two portions at this rate
        assert have[0] == pytest.approx(part * seconds * MIB, abs=2 * 105 * KIB)
    # Nothing is left unused, also when the first is done; each of some 120 portions may wait a part of a nanosecond.
    assert 0 <= (clock.now - begun) - 12 * SECOND < 1000


def test_a_host_has_its_own_rate_and_leaves_the_rest_to_others(make, registry, sample):
    data = b"d" * (2 * MIB)
    with FakeRegistry(("team/app:v1", sample)) as other:
        for one in (registry, other):
            one.add_blob("team/app", data)
        bench = make(2, RateLimits(total=10 * MIB, per_host=MIB))
        clock, sinks = bench.clock, []

        def pull(one):
            sinks.append(Sink(clock))
            with clock.party():
                bench.download(one, data, sinks[-1])

        begun = clock.now
        side_by_side(lambda: pull(registry), lambda: pull(other))
    assert [bytes(sink.data) == data for sink in sinks] == [True, True]
    assert 2 * SECOND <= clock.now - begun < 2.1 * SECOND  # each came with 1 MiB/s


def test_where_a_host_sends_us_for_the_bytes_they_come_out_of_its_own_bucket(make, registry, kit):
    with FakeRegistry(name="localhost") as storage:
        storage.add_blob("team/app", kit.BLOB)
        registry.on(
            "GET", "/blobs/", redirect(f"http://{storage.host}/v2/team/app/blobs/{kit.descriptor(kit.BLOB).digest}")
        )
        bench = make(1, RateLimits(per_host=MIB))
        begun = bench.clock.now
        bench.download(registry, kit.BLOB, Sink(bench.clock))
        assert storage.count("GET", "/blobs/") == 1
    assert bench.clock.now - begun == pytest.approx(SECOND, abs=1000)


@pytest.mark.parametrize("behaviour", [chunked(70_000), cut(300_000)])
def test_bytes_of_every_framing_and_of_every_try_count(make, registry, kit, behaviour):
    registry.on("GET", "/blobs/", behaviour)
    bench = make(1, RateLimits(total=MIB))
    begun = bench.clock.now
    delivered = bench.download(registry, kit.BLOB, Sink(bench.clock))
    assert delivered.bytes_received >= len(kit.BLOB)
    taken = (bench.clock.now - begun) * MIB // SECOND
    assert delivered.bytes_received <= taken <= delivered.bytes_received + 110 * KIB


class Alone:
    """A clock for threads that come and go: whose turn is next lets the time pass that it would wait."""

    def __init__(self) -> None:
        self.now = 7 * SECOND
        self._lock = threading.Lock()

    def __call__(self) -> int:
        return self.now

    def seconds(self) -> float:
        return self.now / SECOND

    def wait(self, news: threading.Event, seconds: float | None) -> None:
        if seconds is None:
            assert news.wait(PATIENCE)
            return
        with self._lock:
            self.now += round(seconds * SECOND)


class Four:
    """Wants four connections from the first byte on."""

    def __init__(self, most: int) -> None:
        self.most = most

    def look(self, *_: object) -> int:
        return self.most

    def failed(self, _: float) -> None:
        pytest.fail("a connection failed")

    def stop(self) -> None:
        self.most = 1


def test_every_connection_for_a_blob_is_metered(desk, kit, registry, tmp_path):
    data = b"".join(bytes([one]) * MIB for one in range(8))
    registry.add_blob("team/app", data)
    registry.on("GET", "/blobs/", lambda exchange: exchange.answer(exchange.default().with_headers(etag='"one"')))
    more = {"least_blob_bytes": 1, "segment_bytes": MIB, "growth": Four}
    bench = Bench(desk.certs, kit, Alone(), RateLimits(total=4 * MIB), several=more)
    ingest = Ingest(tmp_path / "blob", Arrival(len(data)))
    begun = bench.clock.now
    delivered = bench.download(registry, data, ingest)
    assert (tmp_path / "blob").read_bytes() == data
    assert len(registry.requests("GET", "/blobs/")) >= 4
    assert (bench.clock.now - begun) * 4 * MIB >= delivered.bytes_received * SECOND
    ingest.close()
    bench.transport.close()


def test_who_is_made_to_wait_is_not_called_silent(make, registry, kit):
    # A second for each portion of 16 KiB, where 64 KiB are to come in two, and something in half of one.
    bench = make(1, RateLimits(total=16 * KIB), wire=Limits(progress_seconds=2.0), progress_seconds=0.5)
    sink = Sink(bench.clock)
    begun = bench.clock.now
    bench.download(registry, kit.BLOB, sink)
    assert bytes(sink.data) == kit.BLOB
    assert bench.clock.now - begun == 64 * SECOND


def test_a_pull_that_waits_for_its_turn_can_be_cancelled(make, registry, kit):
    bench, cancel = make(2, RateLimits(total=1)), Cancel()  # two parties, and only one comes: time stands still
    outcome: list[str] = []

    def pull():
        try:
            bench.download(registry, kit.BLOB, Sink(bench.clock), cancel=cancel)
        except Cancelled as error:
            outcome.append(str(error))

    thread = threading.Thread(target=pull)
    thread.start()
    while not bench.rates._node.waiting:
        thread.join(0.01)
        assert thread.is_alive()
    cancel.cancel()
    thread.join(PATIENCE)
    assert outcome == ["the pull was cancelled"]
    assert bench.rates._node.waiting == 0


def test_other_limits_hold_for_what_is_under_way(make, registry, kit):
    bench = make(2, RateLimits(total=1))
    thread = threading.Thread(target=lambda: bench.download(registry, kit.BLOB, Sink(bench.clock)))
    thread.start()
    while not bench.rates._node.waiting:
        thread.join(0.01)
        assert thread.is_alive()
    bench.client.follow(Terms())
    thread.join(PATIENCE)
    assert not thread.is_alive()


# What is not expected while it is us who wait


@pytest.mark.parametrize("part", [lambda whole: whole, Branch])
def test_no_progress_is_expected_while_somebody_waits_for_a_turn(part):
    now = [100.0]
    whole = Cancel()
    whole.expect_progress(10, lambda: now[0])
    cancel = part(whole)
    now[0] = 104.0
    with cancel.paused():
        assert cancel.remaining_seconds() is None
        now[0] = 150.0
        with cancel.paused():  # of another connection
            cancel.check()
        now[0] = 204.0
        cancel.check()
    assert cancel.remaining_seconds() == 6.0
    with cancel.paused():
        now[0] = 210.0
        cancel.moved()  # another connection got something
        now[0] = 220.0
    assert cancel.remaining_seconds() == 10.0
    now[0] = 230.0
    with pytest.raises(HostFailed, match="no progress in 10 s"):
        cancel.check()

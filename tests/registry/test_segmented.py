"""One large blob over several connections: who fetches what, and what becomes of it when a host misbehaves."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import Cancelled, NoSpace
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.client import Client
from cri_shim.registry.connections import Bounds, Connections
from cri_shim.registry.flow import Flow
from cri_shim.registry.growth import Growth
from cri_shim.registry.hosts import Hosts
from cri_shim.registry.retry import Pace
from cri_shim.registry.segments import Segments
from cri_shim.registry.terms import Terms
from cri_shim.registry.transport import Transport
from cri_shim.registry.workers import Several, Workers
from cri_shim.store.ingest import Arrival, Ingest
from tests.fakes.misbehaviour import Answer, Exchange, status
from tests.fakes.rootfs_jobs import until

MIB = 1 << 20
DATA = b"".join(bytes([one]) * MIB for one in range(24))
TAG = '"one"'


@dataclass
class Always:
    """Wants so many connections from the first byte on, until something fails."""

    count: int
    noticed: Callable[[], object] = lambda: None
    failures: int = 0

    def look(self, now: float, received_bytes: int, rest_bytes: int, running: int) -> int:
        return self.count

    def failed(self, now: float) -> None:
        self.failures += 1
        self.count = 1
        self.noticed()

    def stop(self) -> None:
        self.count = 1
        self.noticed()


def tagged(tag: str | None = TAG, **more: str | None):
    """The usual answer with a validator."""
    return lambda exchange: exchange.answer(exchange.default().with_headers(etag=tag, **more))


def part_of(exchange: Exchange) -> tuple[int, int] | None:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.request.headers.get("range", ""))
    return None if found is None else (int(found[1]), int(found[2] or len(DATA) - 1) + 1)


HONEST = tagged()


class Link:
    """Serves the blob; the first connection gets *first_bytes* and waits until another request has come.

    Not *early*, it waits until somebody passes `others_came`.
    """

    def __init__(self, registry, first_bytes: int = 2 * MIB, others=HONEST, *, early: bool = True) -> None:
        self.others_came = registry.gate()
        self.first_bytes = first_bytes
        self.others = others
        self.early = early
        self._lock = threading.Lock()
        self.requests = 0
        registry.on("GET", "/blobs/", self)

    def __call__(self, exchange: Exchange) -> None:
        with self._lock:
            self.requests += 1
            first = self.requests == 1
        if not first:
            if self.early:
                self.others_came.release()
            self.others(exchange)
            return
        answer = exchange.default().with_headers(etag=TAG)
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[: self.first_bytes])
        self.others_came.pass_through()
        exchange.send(answer.body[self.first_bytes :])


@dataclass
class Bench:
    """A client whose blobs get several connections, and an ingest for the blob."""

    desk: object
    registry: object
    kit: object
    path: object
    growths: list[Always] = field(default_factory=list)
    bounds: Bounds = Bounds(per_blob=4)
    least_blob_bytes: int = 1
    noticed: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.registry.add_blob("team/app", DATA)
        self.transport = Transport()
        self.pace = Pace()
        self.ingest = Ingest(self.path / "blob", Arrival(len(DATA)))

    def made(self, most: int) -> Always:
        self.growths.append(Always(most, self.noticed))
        return self.growths[-1]

    def client(self) -> Client:
        return Client(
            self.transport,
            Hosts(str(self.desk.certs)),
            pace=self.pace,
            terms=Terms(connections=self.bounds),
            several=Several(least_blob_bytes=self.least_blob_bytes, segment_bytes=4 * MIB, growth=self.made),
        )

    def download(self, sink=None, cancel: Cancel | None = None, client: Client | None = None):
        return (client or self.client()).download(
            self.kit.reference(f"{self.registry.host}/team/app"),
            self.kit.descriptor(DATA),
            ANONYMOUS,
            self.ingest if sink is None else sink,
            cancel or Cancel(),
        )

    @property
    def whole(self) -> bool:
        return (self.path / "blob").read_bytes() == DATA and not self.ingest.missing(0, len(DATA))


@pytest.fixture
def bench(desk, registry, kit, tmp_path):
    made = Bench(desk, registry, kit, tmp_path)
    before = set(threading.enumerate())
    yield made
    made.transport.close()
    made.ingest.close()
    assert not [one for one in set(threading.enumerate()) - before if one.is_alive() and "fake" not in one.name]


def ranges(registry) -> list[str | None]:
    return [seen.headers.get("range") for seen in registry.requests("GET", "/blobs/")]


def test_a_large_blob_comes_over_several_connections_and_each_byte_once(bench, registry):
    Link(registry)
    delivered = bench.download()
    asked = ranges(registry)
    assert bench.whole
    assert asked[0] is None
    assert len(asked) >= 4
    assert registry.connections >= 2
    parts = sorted(
        (int(first), int(last or len(DATA) - 1)) for first, last in (one[6:].split("-") for one in asked[1:])
    )
    assert all(one[1] < after[0] for one, after in zip(parts, parts[1:], strict=False))
    assert all(seen.headers["if-range"] == TAG for seen in registry.requests("GET", "/blobs/")[1:])
    # The first connection was told at its next piece to end; what it had in hand is all that may have come twice.
    assert len(DATA) <= delivered.bytes_received <= len(DATA) + MIB
    assert delivered.hosts == (registry.host,)


@pytest.mark.parametrize(
    "first",
    [
        {"etag": None},
        {"etag": 'W/"weak"'},
        {"etag": None, "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
        {"etag": TAG, "accept_ranges": "none"},
        {"etag": TAG, "accept_ranges": None},
    ],
)
def test_a_host_that_shows_no_ranges_or_no_strong_validator_has_one(bench, registry, first):
    headers = {"accept_ranges": "bytes", **first}
    registry.on("GET", "/blobs/", lambda exchange: exchange.answer(exchange.default().with_headers(**headers)))
    bench.download()
    assert bench.whole
    assert ranges(registry) == [None]


def test_a_small_blob_has_one(bench, registry):
    registry.on("GET", "/blobs/", tagged())
    bench.least_blob_bytes = len(DATA) + 1
    bench.download()
    assert bench.whole
    assert ranges(registry) == [None]


def test_a_sink_that_takes_no_parts_has_one(bench, registry, kit):
    registry.on("GET", "/blobs/", tagged())
    sink = kit.MemorySink()
    bench.download(sink)
    assert bytes(sink.data) == DATA
    assert ranges(registry) == [None]


def wrong(exchange: Exchange) -> None:
    part = part_of(exchange)
    if part is None or part[1] == len(DATA):
        tagged()(exchange)
    else:
        tagged(content_range=f"bytes {part[0] + 1}-{part[1] - 1}/{len(DATA)}")(exchange)


def ignoring(exchange: Exchange) -> None:
    exchange.answer(Answer(200, (("ETag", TAG),), DATA))


def other_tag(exchange: Exchange) -> None:
    tagged('"two"')(exchange)


@pytest.mark.parametrize("others", [wrong, ignoring, other_tag, status(403), status(416), status(404)])
def test_a_host_that_does_not_do_what_it_showed_has_one_and_loses_nothing(bench, registry, others):
    """The others' requests alone are answered so; the first connection had its part, and goes on as it can."""
    failed: list[tuple[int, int]] = []

    def once(exchange: Exchange) -> None:
        part = part_of(exchange)
        if len(failed) < 3 and part is not None and part[1] < len(DATA):
            failed.append(part)
            others(exchange)
        else:
            tagged()(exchange)

    # The first connection goes on when the client knows of it: until then it may ask for a part itself.
    bench.noticed = Link(registry, others=once, early=False).others_came.release
    bench.bounds = Bounds(per_blob=2)
    bench.download()
    assert bench.whole
    assert bench.ingest.generation == 0
    assert len(failed) == 1


@pytest.mark.parametrize("others", [status(401), status(403), status(404)])
def test_the_first_connection_may_be_the_next_that_meets_it(bench, registry, others):
    """It has asked for a part before it hears that parts are refused, and asks for the whole rest then."""
    refused: list[tuple[int, int]] = []

    def parts(exchange: Exchange) -> None:
        part = part_of(exchange)
        if part is not None and part[1] < len(DATA):
            refused.append(part)
            others(exchange)
        else:
            tagged()(exchange)

    def first_again(exchange: Exchange) -> None:
        """Hold what another connection asks for until the first has asked for its next part."""
        link.others_came.release()
        second.pass_through()
        parts(exchange)

    def gone_on(exchange: Exchange) -> None:
        if link.requests == 2:
            first_again(exchange)
        else:
            parts(exchange)
            second.release()

    second = registry.gate()
    link = Link(registry, others=gone_on, early=False)
    bench.bounds = Bounds(per_blob=2)
    bench.download()
    assert bench.whole
    assert bench.ingest.generation == 0
    assert len(refused) == 2


@pytest.mark.parametrize("code", [429, 503])
def test_a_host_that_is_busy_has_one_and_its_time(bench, registry, code):
    told = threading.Event()

    def busy(exchange: Exchange) -> None:
        if told.is_set():
            tagged()(exchange)
        else:
            told.set()
            status(code, headers=[("Retry-After", "1")])(exchange)

    bench.noticed = Link(registry, others=busy, early=False).others_came.release
    bench.bounds = Bounds(per_blob=2)
    bench.download()
    assert bench.whole
    assert bench.growths[0].failures == 1
    assert registry.host in bench.pace._until  # one clock for the host, whichever connection heard it


def test_what_a_connection_leaves_when_it_breaks_is_asked_for_from_there(bench, registry):
    broken: list[tuple[int, int]] = []

    def cuts(exchange: Exchange) -> None:
        part = part_of(exchange)
        if broken or part is None:
            tagged()(exchange)
            return
        broken.append(part)
        answer = exchange.default().with_headers(etag=TAG)
        exchange.head(206, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[:MIB])
        exchange.finish()

    Link(registry, others=cuts)
    bench.bounds = Bounds(per_blob=2)
    delivered = bench.download()
    assert bench.whole
    assert any(one and one.startswith(f"bytes={broken[0][0] + MIB}-") for one in ranges(registry))
    assert delivered.bytes_received <= len(DATA) + MIB


def test_a_cancel_ends_all_of_them(bench, registry):
    gate, came = registry.gate(), threading.Semaphore(0)

    def hangs(exchange: Exchange) -> None:
        came.release()
        answer = exchange.default().with_headers(etag=TAG)
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[:MIB])
        gate.pass_through()

    link = Link(registry, others=hangs)
    cancel, errors = Cancel(), []

    def work() -> None:
        try:
            bench.download(cancel=cancel)
        except Cancelled as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        assert came.acquire(timeout=20)
    cancel.cancel()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert link.requests in (4, 5)  # the first may have come to its end, and asked for more
    gate.release()


def test_holes_that_an_earlier_pull_left_are_filled_and_nothing_else_is_fetched(bench, registry):
    registry.on("GET", "/blobs/", tagged())
    for first, end in ((2, 5), (9, 10), (20, 22)):
        bench.ingest.put(first * MIB, DATA[first * MIB : end * MIB])
    bench.bounds = Bounds(per_blob=1)
    delivered = bench.download()
    assert bench.whole
    assert delivered.bytes_received == len(DATA) - 6 * MIB
    holes = ((0, 2), (5, 9), (10, 20))
    assert ranges(registry) == [*(f"bytes={one * MIB}-{end * MIB - 1}" for one, end in holes), f"bytes={22 * MIB}-"]


def test_a_full_disk_that_another_connection_meets_ends_the_download(bench, registry, monkeypatch):
    put = bench.ingest.put

    def full(offset_bytes, data):
        if "+" in threading.current_thread().name:
            raise NoSpace("no room")
        return put(offset_bytes, data)

    monkeypatch.setattr(bench.ingest, "put", full)
    Link(registry)
    with pytest.raises(NoSpace):
        bench.download()


def test_where_no_more_threads_can_be_made_there_is_one_connection(bench, registry, monkeypatch):
    """As with a bound on a service's tasks; the download neither fails nor waits for who never began."""
    start, refused = threading.Thread.start, []

    def starting(thread):
        if "+" in thread.name:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    registry.on("GET", "/blobs/", tagged())
    bench.download()
    assert bench.whole
    assert ranges(registry)[0] is None
    assert (len(refused), bench.growths[0].failures) == (1, 1)


def test_a_host_that_answers_no_part_rightly_sends_the_whole(bench, registry):
    """First the part, then all from its beginning, and only then everything anew."""
    bench.ingest.put(0, DATA[:MIB])
    bench.ingest.put(4 * MIB, DATA[4 * MIB : 8 * MIB])

    def no_part(exchange: Exchange) -> None:
        tagged(**({} if part_of(exchange) is None else {"content_range": "bytes 1-2/3"}))(exchange)

    registry.on("GET", "/blobs/", no_part)
    bench.download()
    assert bench.whole
    assert ranges(registry) == [f"bytes={MIB}-{4 * MIB - 1}", f"bytes={MIB}-", None]
    assert bench.ingest.generation == 1


def test_a_download_that_was_cancelled_before_it_began_has_no_connection(bench):
    several, cancel = Several(), Cancel()
    cancel.cancel()
    workers = Workers("a", Segments(bench.ingest, len(DATA)), several, cancel)
    with pytest.raises(Cancelled), workers:
        raise AssertionError("it began")
    assert several.connections.open_to("a") == 0


# How many


def test_as_many_to_a_host_and_in_all_as_are_allowed():
    connections, bounds, flow = Connections(), Bounds(per_blob=9, per_host=2, total=3), Flow("one")
    with connections.first("a", flow), connections.first("b", flow):
        assert [connections.another("a", bounds, flow) for _ in range(2)] == [True, False]
        assert not connections.another("b", bounds, flow)  # three in all
        assert not connections.must_yield("a", bounds, flow)  # to nobody
        connections.close("a", flow)
        assert connections.another("b", bounds, flow)
        connections.close("b", flow)
    assert (connections.open_to("a"), connections.open_to("b")) == (0, 0)
    assert not connections._wanting


def taken(connections: Connections, host: str, bounds: Bounds, flow: Flow) -> int:
    """Have as many as there are."""
    number = 0
    while connections.another(host, bounds, flow):
        number += 1
    return number


def yielded(connections: Connections, host: str, bounds: Bounds, flow: Flow) -> int:
    """Give up as many as are due to others."""
    number = 0
    while connections.must_yield(host, bounds, flow):
        connections.close(host, flow)
        number += 1
    return number


@pytest.mark.parametrize("bounds", [Bounds(per_host=12, total=99), Bounds(per_host=99, total=12)])
@pytest.mark.parametrize(("weight", "due"), [(100, 6), (400, 9), (10, 1)])
def test_who_comes_later_gets_what_others_have_beyond_their_share(bounds, weight, due):
    connections, early, late = Connections(), Flow("early"), Flow("late", weight)
    hosts = ("a", "a" if bounds.per_host == 12 else "b")
    with connections.first("a", early):
        assert taken(connections, "a", bounds, early) == 11  # nobody else is there: all
        with connections.first(hosts[1], late):
            assert yielded(connections, "a", bounds, early) == 0  # it wants no more than its first
            got = 1 + taken(connections, hosts[1], bounds, late)
            while gone := yielded(connections, "a", bounds, early):
                assert gone <= 2  # no more than makes room for one
                assert taken(connections, "a", bounds, early) == 0
                got += taken(connections, hosts[1], bounds, late)
            assert got == due
            assert yielded(connections, hosts[1], bounds, late) == 0
            for _ in range(got - 1):
                connections.close(hosts[1], late)
        assert taken(connections, "a", bounds, early) == got - (due == 1)  # all, again


def test_a_connection_that_is_due_to_another_image_ends_with_its_segment(bench, registry, monkeypatch):
    bench.bounds = Bounds(per_blob=4, total=4)
    client, other = bench.client(), Flow("other")
    connections, closed = client._several.connections, []
    close = connections.close

    def noted(host: str, flow: Flow) -> None:
        closed.append((flow, bench.ingest.present_bytes))
        link.others_came.release()
        close(host, flow)

    monkeypatch.setattr(connections, "close", noted)

    def others(exchange: Exchange) -> None:
        until(lambda: closed or connections.open_to(registry.host) == 4, "as many as there are")
        if not closed:
            assert not connections.another(registry.host, bench.bounds, other)
        HONEST(exchange)

    link = Link(registry, others=others, early=False)
    with connections.first(registry.host, other):
        bench.download(client=client)
    assert bench.whole
    # The first is at its 2 MiB, two others at their first 4 each; without this they would go on to the end.
    assert closed[0][0] is not other
    assert closed[0][1] <= 11 * MIB


def test_who_does_not_ask_again_wants_no_more():
    now = [0.0]
    connections, bounds = Connections(lambda: now[0]), Bounds(total=4)
    early, late = Flow("early"), Flow("late")
    with connections.first("a", early), connections.first("a", late):
        assert taken(connections, "a", bounds, early) == 2
        assert not connections.another("a", bounds, late)
        now[0] = 4.9
        assert connections.must_yield("a", bounds, early)
        now[0] = 5.0
        assert not connections.must_yield("a", bounds, early)


@dataclass
class Wire:
    """A link: each connection may have so much, and all together so much, in bytes a second."""

    each: float
    together: float
    now: float = 0.0
    received: int = 0

    def run(self, growth: Growth, seconds: float, rest: int = 1 << 40) -> list[int]:
        seen = [growth.count]
        for _ in range(int(seconds * 10)):
            count = growth.look(self.now, self.received, rest, growth.count)
            seen += [count] if count != seen[-1] else []
            self.now += 0.1
            self.received += int(min(self.together, self.each * count) / 10)
        return seen


@pytest.mark.parametrize(
    ("wire", "counts"),
    [
        (Wire(25e6, 1e9), [1, 2, 4, 6]),
        (Wire(25e6, 25e6), [1, 2, 1]),
        (Wire(25e6, 50e6), [1, 2, 4, 2]),
        (Wire(900e6, 900e6), [1]),
        (Wire(100e6, 1e9), [1, 2, 4]),  # fast enough
    ],
)
def test_more_are_kept_where_more_comes_with_them(wire, counts):
    assert wire.run(Growth(6), 10) == counts


def test_no_more_are_tried_for_the_little_that_is_left():
    assert Wire(25e6, 1e9).run(Growth(6), 10, rest=40_000_000) == [1]


def test_after_a_failure_there_is_one_for_a_while_and_after_some_for_good():
    growth, wire = Growth(4), Wire(25e6, 1e9)
    for number in range(1, 4):
        assert wire.run(growth, 10) == [1, 2, 4]
        growth.failed(wire.now)
        assert wire.run(growth, 29) == [1]
        assert growth.failures == number
    assert wire.run(growth, 100) == [1]


def test_segments_are_those_nearest_the_beginning_and_shrink_towards_the_end(tmp_path):
    ingest = Ingest(tmp_path / "blob", Arrival(100))
    segments = Segments(ingest, 100)
    ingest.put(10, bytes(5))
    taken = [segments.take(4, most_bytes=20, least_bytes=5) for _ in range(20)]
    found = [(one.first, one.end) for one in taken if one is not None]
    assert found[:3] == [(0, 10), (15, 35), (35, 51)]
    assert all(one[1] in (after[0], 10) for one, after in zip(found, found[1:], strict=False))
    assert found[-1][1] == 100
    assert min(end - first for first, end in found[:-1]) >= 5
    segments.give_back(taken[0])
    assert segments.take().first == 0
    ingest.close()

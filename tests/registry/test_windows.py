"""A host that says Retry-After gets no request before its time is over, from whichever pull, for whatever step.

The host keeps the times: every request is compared with what was answered before it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import RegistryUnavailable
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.retry import ATTEMPTS
from tests.fakes.misbehaviour import Exchange, redirect, status
from tests.fakes.registry import Bearer, FakeRegistry
from tests.fakes.rootfs_jobs import until

SECONDS = 30
BUSY = status(429, headers=[("Retry-After", str(SECONDS))])
PATIENCE = 60


@dataclass
class Watch:
    """A host that is busy for its first answers, and notes which requests came although it had asked for none."""

    clock: object
    busy: int
    came: list[float] = field(default_factory=list)
    too_early: list[float] = field(default_factory=list)
    closed_until: float = 0.0

    def __call__(self, exchange: Exchange) -> None:
        now = self.clock()
        self.came.append(now)
        if now < self.closed_until:
            self.too_early.append(self.closed_until - now)
        if len(self.came) <= self.busy:
            self.closed_until = now + SECONDS
            BUSY(exchange)
        else:
            exchange.answer(exchange.default())


@pytest.fixture
def name(registry):
    return f"{registry.host}/team/app:v1"


def watched(registry, clock, busy: int) -> Watch:
    watch = Watch(clock, busy)
    registry.on("GET", "/v2/", watch)
    registry.on("HEAD", "/v2/", watch)
    return watch


@pytest.mark.parametrize("step", ["manifest", "resolve", "download"])
def test_the_next_pull_waits_for_what_the_last_one_was_told_when_it_gave_up(desk, registry, name, step):
    watch = watched(registry, desk.clock, ATTEMPTS)
    with pytest.raises(RegistryUnavailable):
        getattr(desk, step)(name)
    assert len(watch.came) == ATTEMPTS
    getattr(desk, step)(name)
    assert watch.too_early == []
    assert watch.came[ATTEMPTS] - watch.came[ATTEMPTS - 1] == SECONDS


def test_a_pull_that_comes_while_another_waits_waits_with_it(desk, registry, name):
    watch = watched(registry, desk.clock, 1)
    both_wait = threading.Barrier(2, lambda: setattr(desk.clock, "now", desk.clock.now + SECONDS))
    first_waits = threading.Event()

    def sleep(seconds, cancel):
        first_waits.set()
        both_wait.wait(PATIENCE)

    desk.clock.sleep = sleep
    done: list[object] = []
    threads = [threading.Thread(target=lambda: done.append(desk.manifest(name))) for _ in range(2)]
    threads[0].start()
    assert first_waits.wait(PATIENCE)
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == 2
    assert len(watch.came) == 3
    assert watch.too_early == []


def test_it_counts_from_the_head_of_the_answer_on_however_slowly_the_rest_comes(desk, registry, name):
    gate = registry.gate()

    def slowly(exchange: Exchange) -> None:
        exchange.head(429, (("Retry-After", str(SECONDS)), ("Content-Length", "2")))
        gate.pass_through()
        exchange.send(b"{}")

    registry.on("GET", "/manifests/", slowly, times=1)
    pull = threading.Thread(target=desk.manifest, args=(name,))
    pull.start()
    pace = desk.client._means.pace
    until(lambda: registry.host in pace._until, "the news")
    assert registry.count() == 1
    gate.release()
    pull.join(PATIENCE)
    assert desk.clock.slept == [SECONDS]


def test_a_host_that_closes_while_a_token_is_fetched_is_not_asked_with_it(desk, registry, name, kit):
    registry.auth = Bearer(anonymous=True)
    closed = []

    def close(exchange: Exchange) -> None:
        # Another pull is told so, while this one asks the realm.
        if not closed:
            closed.append(desk.clock.now)
            desk.client._means.pace.hold(registry.host, HostFailed("busy", busy=True, after_seconds=SECONDS))
        exchange.answer(exchange.default())

    registry.on("GET", "/token", close)
    asked = []

    def note(exchange: Exchange) -> None:
        asked.append(desk.clock.now)
        exchange.answer(exchange.default())

    registry.on("GET", "/manifests/", note)
    desk.manifest(name)
    assert asked[0] == closed[0]
    assert asked[1] - closed[0] >= SECONDS


def test_where_a_host_sends_us_is_left_alone_as_well_whoever_sends_us(desk, registry, kit, sample):
    with FakeRegistry() as storage, FakeRegistry(("team/app:v1", sample)) as other:
        storage.add_blob("team/app", kit.BLOB)
        watch = watched(storage, desk.clock, 1)
        digest = kit.descriptor(kit.BLOB).digest
        for one in (registry, other):
            one.add_blob("team/app", kit.BLOB)
            one.on("GET", "/blobs/", redirect(f"http://{storage.host}/v2/team/app/blobs/{digest}"))
        cancel = Cancel(deadline=desk.clock.now + 1, clock=desk.clock)
        with pytest.raises(RegistryUnavailable, match="answered 429"):
            desk.client.download(
                kit.reference(f"{registry.host}/team/app"),
                kit.descriptor(kit.BLOB),
                ANONYMOUS,
                kit.MemorySink(),
                cancel,
            )
        assert len(watch.came) == 1
        desk.download(f"{other.host}/team/app:v1")
    assert watch.too_early == []
    assert watch.came[1] - watch.came[0] == SECONDS

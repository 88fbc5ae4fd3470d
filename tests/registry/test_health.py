"""Hosts that fail are left out for a while, and one caller at a time is sent to see."""

from __future__ import annotations

import pytest

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import NotFound, RegistryUnavailable
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.client import Client, Terms
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.health import HOSTS, LONGEST_SECONDS, Health
from cri_shim.registry.hosts import Hosts
from cri_shim.registry.retry import Pace
from cri_shim.registry.transport import Transport
from cri_shim.registry.wire import Limits
from tests.fakes.misbehaviour import drop, partly, status
from tests.fakes.registry import FakeRegistry
from tests.fakes.rootfs_jobs import until


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_host_that_never_failed_is_asked(clock):
    assert Health(clock).may_ask("a")


def test_times_grow_to_five_minutes_and_a_success_ends_them(clock):
    health = Health(clock)
    waits = []
    for _ in range(7):
        health.failed("a")
        waits.append(health.left_out_seconds("a"))
        clock.now += waits[-1] - 0.001
        assert not health.may_ask("a")
        clock.now += 0.001
        assert health.may_ask("a")
    assert waits == [15.0, 30.0, 60.0, 120.0, 240.0, LONGEST_SECONDS, LONGEST_SECONDS]
    health.worked("a")
    assert health.may_ask("a")
    assert health.left_out_seconds("a") == 0


def test_many_failures_at_once_count_as_one(clock):
    health = Health(clock)
    for _ in range(6):
        health.failed("a")
    assert health.left_out_seconds("a") == 15.0


def test_of_those_who_come_after_its_time_one_is_sent(clock):
    health = Health(clock)
    health.failed("a")
    clock.now += 15
    assert [health.may_ask("a") for _ in range(4)] == [True, False, False, False]
    clock.now += 15  # the one that was sent never came back
    assert [health.may_ask("a") for _ in range(2)] == [True, False]


def test_the_oldest_are_forgotten(clock):
    health = Health(clock)
    for number in range(HOSTS + 1):
        health.failed(str(number))
    assert health.may_ask("0")
    assert not health.may_ask(str(HOSTS))


def test_of_two_names_either_is_enough_to_leave_out(clock):
    health = Health(clock)
    health.failed("a")
    assert not health.may_ask("a", "a for x")
    assert not health.may_ask("a", "a for y")
    clock.now += 5
    health.failed("a for x")
    assert health.left_out_seconds("a", "a for x") == 15.0
    clock.now += 10
    assert not health.may_ask("a", "a for x")
    assert health.may_ask("a", "a for y")  # and the refusal before was no try
    health.worked("a", "a for y")
    clock.now += 5
    assert health.may_ask("a", "a for x")
    assert not health.may_ask("a", "a for x")


# In the client


@pytest.fixture
def mirrored(desk, registry, sample):
    """A name whose image lies at a mirror and at its registry, and the mirror."""
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        desk.names.add("reg.test", "93.184.216.34", registry.port)
        desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n[host."{mirror.url}"]\n')
        yield mirror


NAME = "reg.test/team/app:v1"


def test_a_mirror_that_failed_is_left_out_and_tried_again(desk, registry, mirrored):
    mirrored.on("*", "", drop(), times=2)
    assert desk.manifest(NAME).host != mirrored.host
    assert mirrored.count() == 2
    for _ in range(3):
        assert desk.manifest(NAME).host != mirrored.host
    assert mirrored.count() == 2
    desk.clock.now += 15
    assert desk.manifest(NAME).host == mirrored.host
    assert desk.manifest(NAME).host == mirrored.host


@pytest.mark.parametrize("code", [404, 401, 403])
def test_a_mirror_that_has_it_not_is_asked_again(desk, registry, mirrored, code):
    mirrored.on("*", "", status(code))
    for number in range(1, 4):
        desk.manifest(NAME)
        assert mirrored.count() == number


def test_a_mirror_is_asked_after_all_when_the_registry_is_down(desk, registry, mirrored):
    mirrored.on("*", "", drop(), times=2)
    desk.manifest(NAME)
    registry.on("*", "", drop())
    assert desk.manifest(NAME).host == mirrored.host


def test_a_mirror_is_not_asked_after_a_clear_no(desk, registry, mirrored):
    mirrored.on("*", "", drop())
    desk.manifest(NAME)
    mirrored.forget()
    registry.on("*", "", status(404))
    with pytest.raises(NotFound) as caught:
        desk.manifest(NAME)
    assert mirrored.count() == 0
    assert mirrored.host not in str(caught.value)


def test_when_all_fail_the_registry_names_the_failure(desk, registry, mirrored):
    mirrored.on("*", "", drop())
    desk.manifest(NAME)
    registry.on("*", "", status(500))
    mirrored.on("*", "", status(404))
    with pytest.raises(RegistryUnavailable) as caught:
        desk.manifest(NAME)
    assert str(caught.value).index(mirrored.host) < str(caught.value).index("answered 500")


def test_the_registry_itself_is_never_left_out(desk, registry, sample):
    name = f"{registry.host}/team/app:v1"
    registry.on("GET", "/manifests/", drop(), times=5)
    with pytest.raises(RegistryUnavailable):
        desk.manifest(name)
    assert desk.manifest(name).data == sample.manifest


# How long


@pytest.fixture
def hasty(desk):
    """Make a client with little patience for mirrors, on the real clock."""
    transport = Transport(Limits())
    yield lambda seconds: Client(transport, Hosts(str(desk.certs)), terms=Terms(mirror_stall_seconds=seconds))
    transport.close()


def two_hosts(desk, first, second):
    desk.hosts_toml("reg.test", f'server = "{second.url}"\n[host."{first.url}"]\n')


def test_a_mirror_that_says_nothing_is_abandoned(desk, hasty, registry, mirrored, kit, sample):
    two_hosts(desk, mirrored, registry)
    mirrored.hold("")
    got = hasty(0.05).manifest(kit.reference(NAME), (), Cancel())
    assert (got.data, got.host) == (sample.manifest, registry.host)
    until(lambda: mirrored.count() == 1, "the request, just one")


def test_a_mirror_that_stops_in_a_blob_is_abandoned_and_the_rest_is_asked_for(desk, hasty, registry, mirrored, kit):
    two_hosts(desk, mirrored, registry)
    mirrored.add_blob("team/app", kit.BLOB)
    mirrored.on("GET", "/blobs/", partly(300_000, mirrored.gate()))
    sink, seconds = kit.MemorySink(), 0.05
    while not sink.data:  # a busy machine has to be given longer for the part that comes
        registry.forget()
        mirrored.forget()
        seconds *= 2
        sink = kit.MemorySink()
        delivered = hasty(seconds).download(kit.reference(NAME), kit.descriptor(kit.BLOB), (), sink, Cancel())
        assert bytes(sink.data) == kit.BLOB
        if delivered.hosts == (registry.host,):
            sink.data.clear()
    assert delivered.hosts == (mirrored.host, registry.host)
    assert (mirrored.count("GET", "/blobs/"), registry.count("GET", "/blobs/")) == (1, 1)


def test_without_progress_a_call_ends_whatever_hosts_are_left(desk, registry, kit):
    clock = desk.clock
    transport = Transport(Limits())
    client = Client(
        transport,
        Hosts(str(desk.certs)),
        pace=Pace(clock=clock, sleep=clock.sleep, chance=lambda: 0.0),
        clock=clock,
        terms=Terms(progress_seconds=4.0),
    )
    registry.on("GET", "/blobs/", status(503, headers=[("Retry-After", "3")]))
    with pytest.raises(HostFailed):
        client.download(
            kit.reference(f"{registry.host}/team/app"), kit.descriptor(kit.BLOB), ANONYMOUS, kit.MemorySink(), Cancel()
        )
    assert sum(clock.slept) <= 4
    assert registry.count("GET", "/blobs/") == 2
    transport.close()


def test_a_mirror_that_is_busy_for_long_is_passed_over_and_left_alone(desk, registry, mirrored):
    mirrored.on("*", "", status(429, headers=[("Retry-After", "50")]), times=1)
    assert desk.manifest(NAME).host != mirrored.host
    assert (mirrored.count(), desk.clock.slept) == (1, [])
    desk.clock.now += 20  # it would be tried again, but its own time is not over
    assert desk.manifest(NAME).host != mirrored.host
    assert (mirrored.count(), desk.clock.slept) == (1, [])
    desk.clock.now += 35
    assert desk.manifest(NAME).host == mirrored.host


def test_a_mirror_that_is_busy_for_a_moment_is_waited_for(desk, registry, mirrored):
    mirrored.on("*", "", status(429, headers=[("Retry-After", "2")]), times=1)
    assert desk.manifest(NAME).host == mirrored.host
    assert desk.clock.slept == [2.0]


def test_progress_is_counted_from_the_last_byte():
    clock = Clock()
    cancel = Cancel(clock=clock)
    cancel.expect_progress(10, clock)
    clock.now += 9
    cancel.moved()
    clock.now += 9
    cancel.check()
    assert cancel.remaining_seconds() == 1
    clock.now += 1
    with pytest.raises(HostFailed, match="no progress in 10 s"):
        cancel.check()
    assert not cancel.cancelled


def test_a_mirror_that_answers_badly_for_one_registry_is_asked_for_another(desk, registry, mirrored):
    desk.hosts_toml("_default", f'[host."{mirrored.url}"]\n')
    mirrored.on("*", "/bad/", status(502))
    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            desk.manifest("nonexistent.example/bad/app:v1")
    assert mirrored.count("*", "/bad/") == 4  # the second time after all, as nobody else could be asked
    assert desk.manifest(NAME).host == mirrored.host


@pytest.mark.parametrize(("there", "seconds"), [(False, 15.0), (True, 0.0)])
def test_a_mirror_that_is_not_there_is_left_out_for_all(desk, registry, sample, kit, there, seconds):
    with FakeRegistry() as mirror:
        mirror.on("*", "", status(502))
        if not there:
            mirror.close()
        desk.names.add("reg.test", "93.184.216.34", registry.port)
        for name in ("reg.test", "other.test"):
            desk.hosts_toml(name, f'server = "http://reg.test:{registry.port}"\n[host."{mirror.url}"]\n')
        assert desk.manifest(NAME).data == sample.manifest
        told = desk.client.survey(kit.reference("other.test/team/app:v1"), (ANONYMOUS,), Cancel())
        assert told[0].left_out_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("silent", [True, False])
def test_a_mirror_that_takes_connections_and_says_nothing_is_left_out_for_that_registry(
    desk, hasty, registry, mirrored, kit, silent
):
    """It waits for a registry that does not answer, and may well have what others want."""
    for name in ("reg.test", "other.test"):
        desk.hosts_toml(name, f'server = "{registry.url}"\n[host."{mirrored.url}"]\n')
    client = hasty(0.4)
    if silent:
        mirrored.hold("", "*")
    else:
        mirrored.on("*", "/manifests/", partly(10, mirrored.gate()))
    assert client.manifest(kit.reference(NAME), (), Cancel()).host == registry.host
    asked = mirrored.count()
    assert client.manifest(kit.reference(NAME), (), Cancel()).host == registry.host
    assert mirrored.count() == asked
    assert client.survey(kit.reference("other.test/team/app:v1"), (), Cancel())[0].left_out_seconds == 0

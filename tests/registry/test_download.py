"""Layer blobs across what registries and networks do to them (attacks.md, group H)."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from cri_shim.errors import Cancelled, ContentRejected, NoSpace, NotFound, RegistryUnavailable, Unauthenticated
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.dial import Dialler, lookup
from cri_shim.registry.wire import Limits
from tests.fakes.misbehaviour import (
    chunked,
    cut,
    drip,
    drop,
    lie,
    partly,
    raw,
    redirect,
    status,
    swap,
    until_close,
    whole,
)
from tests.fakes.registry import Basic, FakeRegistry
from tests.fakes.rootfs_jobs import until

MIB = 1 << 20


@pytest.fixture
def name(registry):
    return f"{registry.host}/team/app:v1"


@pytest.mark.parametrize(
    "behaviour", [chunked(1000), chunked(70_000), chunked(1000, trailer=b"A: b\r\n"), until_close(), whole()]
)
def test_every_honest_framing(desk, registry, name, kit, behaviour):
    registry.on("GET", "/blobs/", behaviour)
    delivered, sink = desk.download(name)
    assert bytes(sink.data) == kit.BLOB
    assert delivered.bytes_received == len(kit.BLOB)
    assert delivered.hosts == (registry.host,)
    assert registry.count() == 1


def test_an_empty_blob(desk, registry, name):
    registry.add_blob("team/app", b"")
    delivered, sink = desk.download(name, b"")
    assert (delivered.bytes_received, bytes(sink.data), registry.count()) == (0, b"", 1)


# H10, H11: broken connections


@pytest.mark.parametrize("after", [0, 1, 65_536, 300_000, MIB - 1])
def test_an_early_end_is_resumed_where_it_was(desk, registry, name, kit, after):
    registry.on("GET", "/blobs/", cut(after, reset=False), times=1)
    delivered, sink = desk.download(name)
    assert bytes(sink.data) == kit.BLOB
    assert (sink.restarts, registry.count()) == (0, 2)
    assert registry.log[1].headers.get("range") == (f"bytes={after}-" if after else None)
    assert delivered.bytes_received == len(kit.BLOB)


@pytest.mark.parametrize("after", [0, 1, 65_536, 300_000, MIB - 1])
def test_a_reset_is_resumed_from_what_had_come(desk, registry, name, kit, after):
    """A reset may take back what the kernel had not handed over yet; what was handed over is not fetched again."""
    registry.on("GET", "/blobs/", cut(after), times=1)
    delivered, sink = desk.download(name)
    assert bytes(sink.data) == kit.BLOB
    assert (sink.restarts, registry.count()) == (0, 2)
    start = int(registry.log[1].headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    assert start <= after
    assert delivered.bytes_received == len(kit.BLOB)


def test_a_host_that_ignores_range_sends_everything_again(desk, registry, name, kit):
    registry.then("GET", "/blobs/", cut(100_000, reset=False), whole())
    delivered, sink = desk.download(name)
    assert bytes(sink.data) == kit.BLOB
    assert (sink.restarts, registry.count()) == (0, 2)
    assert delivered.bytes_received == len(kit.BLOB) + 100_000


def test_it_goes_on_from_what_an_earlier_pull_left(desk, registry, name, kit):
    sink = kit.MemorySink(bytearray(kit.BLOB[:777]))
    delivered, _ = desk.download(name, kit.BLOB, sink=sink)
    assert bytes(sink.data) == kit.BLOB
    assert delivered.bytes_received == len(kit.BLOB) - 777
    assert registry.log[0].headers["range"] == "bytes=777-"


def test_nothing_is_asked_for_when_everything_is_there(desk, registry, name, kit):
    delivered, _ = desk.download(name, kit.BLOB, sink=kit.MemorySink(bytearray(kit.BLOB)))
    assert (delivered.bytes_received, delivered.hosts, registry.count()) == (0, (), 0)


def test_failures_without_progress_are_counted(desk, registry, name):
    registry.on("GET", "/blobs/", cut(10))
    with pytest.raises(RegistryUnavailable, match="broke off in the middle"):
        desk.download(name)
    assert registry.count() == 5
    assert desk.clock.slept == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_failures_with_progress_are_forgiven(desk, registry, kit):
    data = bytes(12 * MIB)
    registry.add_blob("team/app", data)
    registry.on("GET", "/blobs/", cut(MIB, reset=False))
    _, sink = desk.download(f"{registry.host}/team/app:v1", data)
    assert len(sink.data) == len(data)
    assert registry.count() == 12


@pytest.mark.parametrize(("code", "requests"), [(500, 5), (503, 5), (429, 5), (404, 1), (416, 1), (302, 1)])
def test_statuses(desk, registry, name, code, requests):
    registry.on("GET", "/blobs/", status(code))
    with pytest.raises((RegistryUnavailable, NotFound)):
        desk.download(name)
    assert registry.count() == requests


# H12: ranges


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-1048575/1048576",
        "bytes 101-1048575/1048576",
        "bytes 99-1048575/1048576",
        "bytes 100-1048575/1048577",
        "bytes 100-1048574/1048576",
        "bytes 100-1048575/*",
        "bytes */1048576",
        "items 100-1048575/1048576",
        "bytes 100-1048575/1048576, bytes 100-1048575/1048576",
        "bytes  100-1048575/1048576",
        "bytes 1_00-1048575/1048576",
        None,
    ],
)
def test_a_wrong_content_range_starts_over_once(desk, registry, name, kit, content_range):
    registry.then("GET", "/blobs/", lie(content_range=content_range))
    sink = kit.MemorySink(bytearray(kit.BLOB[:100]))
    desk.download(name, kit.BLOB, sink=sink)
    assert bytes(sink.data) == kit.BLOB
    assert (sink.restarts, registry.count()) == (1, 2)
    assert "range" not in registry.log[1].headers


def test_two_content_ranges(desk, registry, name, kit):
    def twice(exchange):
        answer = exchange.default()
        extra = [("Content-Range", "bytes 100-1048575/1048576")]
        exchange.answer(type(answer)(answer.status, (*answer.headers, *extra), answer.body))

    registry.then("GET", "/blobs/", twice)
    sink = kit.MemorySink(bytearray(kit.BLOB[:100]))
    desk.download(name, kit.BLOB, sink=sink)
    assert (bytes(sink.data), sink.restarts) == (kit.BLOB, 1)


def test_416_starts_over(desk, registry, name, kit):
    registry.then("GET", "/blobs/", status(416))
    sink = kit.MemorySink(bytearray(kit.BLOB[:100]))
    desk.download(name, kit.BLOB, sink=sink)
    assert (bytes(sink.data), sink.restarts) == (kit.BLOB, 1)


def test_wrong_ranges_twice_are_content(desk, registry, name, kit):
    wrong = lie(content_range="bytes 0-1048575/1048576")
    registry.then("GET", "/blobs/", wrong, cut(5, reset=False), wrong)
    sink = kit.MemorySink(bytearray(kit.BLOB[:100]))
    with pytest.raises(ContentRejected, match="the rest of a blob with something else"):
        desk.download(name, kit.BLOB, sink=sink)
    assert registry.count() == 3


def test_206_without_being_asked(desk, registry, name, kit):
    registry.on("GET", "/blobs/", status(206, kit.BLOB, [("Content-Range", "bytes 0-1048575/1048576")]))
    with pytest.raises(RegistryUnavailable):
        desk.download(name)
    assert registry.count() == 1


# H14: framing


CRLF = b"\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        (chunked(1000, last=b"FFFFFFFFFFFFFFFF\r\n"), 1),
        (chunked(1000, last=b"-5\r\n"), 1),
        (chunked(1000, last=b"0x0\r\n"), 1),
        (chunked(1000, last=b"0;" + b"e" * 100_000 + b"\r\n"), 1),
        (chunked(1000, last=b"0\n"), 1),
        (chunked(1000, trailer=b"A: b\r\n" * 1000), 1),
        (chunked(1000, trailer=b"A: " + b"b" * 100_000 + b"\r\n"), 1),
        (raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"), 5),
        (raw(HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 1048576\r\n\r\n0\r\n\r\n"), 1),
        (raw(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 1),
        (raw(HEAD + b"Content-Length: 1048576\r\nContent-Length: 5\r\n\r\nhello"), 1),
        (raw(HEAD + b"Content-Length: +5\r\n\r\nhello"), 1),
        (raw(HEAD + b"Content-Length: 5_0\r\n\r\nhello"), 1),
        # H22, H24
        (raw(HEAD + b"A: b\r\n" * 10_000 + CRLF), 1),
        (raw(HEAD + b"A: " + b"b" * 3_000_000 + CRLF * 2), 1),
        (raw(HEAD + b"A: a\0b\r\n\r\n"), 1),
        (raw(HEAD + b"A: a\rb\r\n\r\n"), 1),
        (raw(HEAD + b"A: a\n\r\n"), 1),
        (raw(HEAD + b" folded: x\r\n\r\n"), 1),
        (raw(HEAD + b"no colon\r\n\r\n"), 1),
        (raw(HEAD + b"A: b\r\n"), 5),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), 1),
        (raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100), 1),
        (raw(b"HTTP/0.9 200 OK\r\n\r\n"), 1),
        (raw(b"just text"), 1),
        (raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 1),
        (raw(b"\x15\x03\x01\x00\x02\x02\x46"), 1),
        (raw(b"HTTP/1.1 999 x\r\n\r\n"), 1),
        (raw(b"HTTP/1.1 2_0 x\r\n\r\n"), 1),
        (raw(b""), 5),
        (drop(), 5),
    ],
)
def test_broken_http(desk, registry, name, behaviour, requests):
    desk.manifest(name)  # so that the host is known to speak plain http
    desk.transport.close()
    registry.forget()
    registry.on("GET", "/blobs/", behaviour)
    with pytest.raises(RegistryUnavailable) as caught:
        desk.download(name)
    assert registry.count() == requests
    assert registry.host in str(caught.value)
    assert str(caught.value).isprintable()
    registry.on("GET", "/blobs/", whole())
    desk.download(name)


def test_a_continue_is_passed_over(desk, registry, name, kit):
    def behave(exchange):
        exchange.send(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n")
        exchange.answer(exchange.default())

    registry.on("GET", "/blobs/", behave)
    assert bytes(desk.download(name)[1].data) == kit.BLOB


# H16, H19: sizes


@pytest.mark.parametrize("length", ["1048575", "1048577", "0"])
def test_a_wrong_length_is_refused_before_reading(desk, registry, name, length):
    registry.on("GET", "/blobs/", lie(content_length=length))
    with pytest.raises(ContentRejected, match=f"announced {length} bytes where 1048576 are to come"):
        desk.download(name)
    assert registry.count() == 1


@pytest.mark.parametrize("framing", [chunked(65_536), until_close()])
def test_a_longer_body_is_stopped_at_the_size(desk, registry, name, kit, framing):
    smaller = kit.descriptor(kit.BLOB, size_bytes=500_000)
    registry.on("GET", "/blobs/", framing)
    sink = kit.MemorySink()
    with pytest.raises(ContentRejected, match="more than the 500000 bytes"):
        desk.client.download(kit.reference(name), smaller, kit.user(), sink, Cancel())
    assert len(sink.data) <= 500_000
    assert registry.count() == 1


@pytest.mark.parametrize("framing", [chunked(65_536), until_close()])
def test_a_shorter_body_is_asked_for_again(desk, registry, name, kit, framing):
    larger = kit.descriptor(kit.BLOB, size_bytes=len(kit.BLOB) + 10)
    registry.on("GET", "/blobs/", framing)
    with pytest.raises((ContentRejected, RegistryUnavailable)):
        desk.client.download(kit.reference(name), larger, kit.user(), kit.MemorySink(), Cancel())
    assert registry.count() <= 5


def test_a_web_page_instead_of_a_blob(desk, registry, name):
    registry.on("GET", "/blobs/", swap(b"<html>please log in", content_type="text/html"))
    with pytest.raises(ContentRejected, match='a web page instead of a blob: "<html>please log in"'):
        desk.download(name)


# H17: slow peers


def test_slow_bytes_are_no_progress(desk, registry, name):
    """A byte now and then keeps a socket alive and brings nothing: the client's clock runs 10 s for each."""
    time = [0.0]
    desk.limits = Limits(progress_seconds=300, progress_bytes=64 << 10)
    desk.names.add("unused", "10.0.0.1")
    client = desk.client
    desk.transport._clock = lambda: time[0]

    def pause(sent):
        time[0] += 10.0

    registry.on("GET", "/blobs/", drip(pause, piece=1))
    with pytest.raises(RegistryUnavailable, match="no progress"):
        desk.download(name)
    assert client is desk.client
    assert registry.count() == 5


@pytest.mark.slow
def test_silence_in_the_middle(desk, registry, name):
    desk.limits = Limits(idle_seconds=0.05)
    gate = registry.gate()
    registry.on("GET", "/blobs/", partly(1000, gate))
    with pytest.raises(RegistryUnavailable, match=r"makes no progress: nothing for 0\.05 s"):
        desk.download(name)
    assert registry.count() == 5


@pytest.mark.slow
def test_silence_before_the_answer(desk, registry, name):
    desk.manifest(name)
    desk.transport._limits = Limits(head_seconds=0.05)
    registry.hold("/blobs/")
    with pytest.raises(RegistryUnavailable, match=r"did not answer within 0\.05 s"):
        desk.download(name)
    until(lambda: registry.count("GET", "/blobs/") == 1, "the request, just one")


def test_a_dribbled_head(desk, registry, name):
    """Each byte comes when the client looks for it, 10 s after the one before."""
    desk.manifest(name)
    time, looks = [0.0], threading.Semaphore(0)

    def clock():
        looks.release()
        return time[0]

    desk.transport._clock = clock

    def dribble(exchange):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
            assert looks.acquire(timeout=20)
            time[0] += 10.0
            exchange.send(bytes([byte]))

    registry.on("GET", "/blobs/", dribble)
    with pytest.raises(RegistryUnavailable, match="did not answer within 60 s"):
        desk.download(name)
    looks.release(2000)  # the registry finds that nobody listens any more
    assert registry.count("GET", "/blobs/") == 1


def test_cancel_in_the_middle(desk, registry, name, kit):
    gate = registry.gate()
    registry.on("GET", "/blobs/", partly(400_000, gate))
    cancel = Cancel()
    sink = kit.MemorySink()
    arrived = threading.Event()

    def watch():
        gate.wait_arrived()
        arrived.set()
        cancel.cancel()

    threading.Thread(target=watch).start()
    with pytest.raises(Cancelled):
        desk.download(name, kit.BLOB, sink=sink, cancel=cancel)
    assert arrived.is_set()
    assert registry.count() == 1
    gate.release()
    registry.on("GET", "/blobs/", whole())
    assert bytes(desk.download(name, kit.BLOB, sink=sink)[1].data) == kit.BLOB


def test_what_the_sink_raises_comes_out_as_it_is(desk, registry, name, kit):
    class Full(kit.MemorySink):
        def append(self, data):
            raise NoSpace("the disk is full")

    with pytest.raises(NoSpace):
        desk.download(name, kit.BLOB, sink=Full())
    assert registry.count() == 1


# H30, connections


def test_a_kept_connection_that_was_closed_is_replaced(desk, registry, name, sample):
    desk.manifest(name)

    def answer_then_vanish(exchange):
        exchange.answer(exchange.default())
        exchange.reset()

    registry.on("GET", "/manifests/", answer_then_vanish)
    for _ in range(3):
        assert desk.manifest(name).data == sample.manifest
    registry.on("GET", "/manifests/", drop(), times=1)
    registry.on("HEAD", "/manifests/", lambda exchange: exchange.answer(exchange.default()))
    desk.resolve(name)  # leaves a good connection
    assert desk.manifest(name).data == sample.manifest
    assert desk.clock.slept == []


# H01, H02, H04, H05: redirects


def test_a_blob_in_an_object_store(desk, registry, name, kit):
    with FakeRegistry() as store:
        store.add_blob("bucket", kit.BLOB)
        digest = kit.descriptor(kit.BLOB).digest
        registry.on("GET", "/blobs/", redirect(f"{store.url}/v2/bucket/blobs/{digest}?X-Signature=s3cret%2f"))
        store.on("GET", "", cut(1000, reset=False), times=1)
        delivered, sink = desk.download(name, kit.BLOB, kit.user())
        assert bytes(sink.data) == kit.BLOB
        assert delivered.host == registry.host
        assert [seen.headers.get("range") for seen in store.log] == [None, "bytes=1000-"]
        assert store.log[0].query.lower() == "x-signature=s3cret%2f"
        assert registry.count() == 2  # each attempt gets a new signature


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "unix:///run/x.sock",
        "javascript:alert(1)",
        "",
        "//evil/x",
        "http://user:pass@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "http://[::1/x",
        "http:///x",
        "https://exa mple.com/x",
        "\\\\evil\\x",
        "http://127.0.0.1/" + "x" * 20_000,
    ],
)
def test_redirects_that_are_not_followed(desk, registry, name, location):
    registry.on("GET", "/blobs/", redirect(location))
    with pytest.raises(RegistryUnavailable) as caught:
        desk.download(name)
    assert registry.count() == 1
    assert "pass@" not in str(caught.value)


def test_a_redirect_without_location(desk, registry, name):
    registry.on("GET", "/blobs/", status(307))
    with pytest.raises(RegistryUnavailable):
        desk.download(name)


@pytest.mark.parametrize(("hops", "works"), [(10, True), (11, False)])
def test_ten_redirects(desk, registry, name, kit, hops, works):
    path = f"/v2/team/app/blobs/{kit.descriptor(kit.BLOB).digest}"
    for hop in range(hops):
        registry.on("GET", f"/blobs/|/hop{hop}$" if hop == 0 else f"/hop{hop}$", redirect(f"/hop{hop + 1}", 302))
    registry.on("GET", f"/hop{hops}$", status(200, kit.BLOB))
    if works:
        assert bytes(desk.download(name)[1].data) == kit.BLOB
    else:
        with pytest.raises(RegistryUnavailable, match="more than 10 times"):
            desk.download(name)
    assert registry.count() == 11
    assert path in registry.log[0].path


def test_a_self_loop(desk, registry, name):
    registry.on("GET", "", lambda exchange: redirect(exchange.request.path)(exchange))
    with pytest.raises(RegistryUnavailable, match="more than 10 times"):
        desk.download(name)
    assert registry.count() == 11


FORBIDDEN = {
    "169.254.169.254": "metadata",
    "169.254.1.1": "link-local",
    "127.0.0.1": "loopback",
    "0.0.0.0": "unspecified",
    "224.0.0.1": "multicast",
    "10.1.2.3": "private",
    "192.168.1.1": "private",
    "100.100.100.200": "metadata",
}


@pytest.mark.parametrize("address", FORBIDDEN)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_public_registry_cannot_send_us_inside(desk, registry, address, by_name):
    desk.names.add("reg.test", "93.184.216.34", registry.port)
    desk.names.add("inside.test", address)  # a connection to it fails the test
    desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n')
    registry.on("GET", "/blobs/", redirect(f"http://{'inside.test' if by_name else address}/x"))
    with pytest.raises(RegistryUnavailable, match=f"a {FORBIDDEN[address]} address, which is not asked"):
        desk.download("reg.test/team/app:v1")
    assert registry.count() == 1


@pytest.mark.parametrize("spelling", ["2130706433", "0177.0.0.1", "0x7f.1", "127.1"])
def test_odd_spellings_are_judged_as_what_they_mean(desk, registry, spelling):
    desk.names.add("reg.test", "93.184.216.34", registry.port)
    desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n')
    fake = desk.names.lookup
    client = desk.client
    desk.transport._dialler = Dialler(
        lambda host, port: fake(host, port) if host == "reg.test" else lookup(host, port), desk.names.connect
    )
    registry.on("GET", "/blobs/", redirect(f"http://{spelling}:22/x"))
    with pytest.raises(RegistryUnavailable, match="a loopback address"):
        desk.download("reg.test/team/app:v1")
    assert client is desk.client


def test_a_private_registry_may_use_a_private_store(desk, registry, kit):
    with FakeRegistry() as store:
        desk.names.add("reg.test", "10.0.0.5", registry.port)
        desk.names.add("store.test", "10.0.0.6", store.port)
        store.add_blob("b", kit.BLOB)
        digest = kit.descriptor(kit.BLOB).digest
        desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n')
        registry.on("GET", "/blobs/", redirect(f"http://store.test:9000/v2/b/blobs/{digest}"))
        assert bytes(desk.download("reg.test/team/app:v1")[1].data) == kit.BLOB


def test_a_registry_on_a_forbidden_address_is_not_asked(desk):
    desk.names.add("reg.test", "169.254.169.254")
    with pytest.raises(RegistryUnavailable, match="a metadata address"):
        desk.download("reg.test/team/app:v1")


def test_the_operator_may_name_any_address(desk, registry, kit):
    desk.names.add("reg.test", "169.254.20.10", registry.port)
    desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n')
    assert bytes(desk.download("reg.test/team/app:v1")[1].data) == kit.BLOB


# H03, T06, T07: what goes along


def test_secrets_stay_at_home_even_on_the_way_back(desk, registry, name, kit):
    """registry → another host → the registry again: what was dropped is not picked up."""
    registry.auth = Basic({"me": "pass-word-1"})
    desk.hosts_toml(registry.host, f'server = "{registry.url}"\n[header]\nX-Secret = "hosts-toml-secret"\n')
    with FakeRegistry() as other:
        registry.on("GET", "/blobs/", redirect(f"{other.url}/away"), times=2)
        other.on("GET", "", redirect(f"{registry.url}/back"))
        registry.on("GET", "/back", status(200, kit.BLOB))
        registry.then("GET", "/blobs/", status(401, headers=[("WWW-Authenticate", 'Basic realm="x"')]))
        desk.download(name, kit.BLOB, kit.user())
        assert registry.requests("GET", "/blobs/")[1].headers["authorization"].startswith("Basic ")
        assert registry.requests("GET", "/blobs/")[1].headers["x-secret"] == "hosts-toml-secret"
        for seen in (*other.log, *registry.requests("GET", "/back")):
            assert "authorization" not in seen.headers
            assert "x-secret" not in seen.headers


def test_a_store_that_wants_credentials_gets_none(desk, registry, name, kit):
    with FakeRegistry() as store, FakeRegistry() as realm:
        challenge = f'Bearer realm="{realm.url}/token",service="x"'
        store.on("GET", "", status(401, headers=[("WWW-Authenticate", challenge)]))
        registry.on("GET", "/blobs/", redirect(f"{store.url}/x"))
        with pytest.raises(Unauthenticated, match="credentials are not shown there"):
            desk.download(name, kit.BLOB, kit.user())
        assert realm.count() == 0
        assert "authorization" not in store.log[0].headers


def test_cookies_and_the_environment_are_ignored(desk, registry, name, monkeypatch, tmp_path):
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://u:p@127.0.0.1:1/")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrcuser password netrcpass\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    registry.on("GET", "/manifests/", lie(set_cookie="session=1"))
    desk.manifest(name)
    desk.download(name)
    for seen in registry.log:
        assert "cookie" not in seen.headers
        assert "authorization" not in seen.headers
        assert "proxy-authorization" not in seen.headers


# Validators: whether what is here and what comes are parts of one thing


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"etag": '"one"'}, '"one"'),
        ({"etag": 'W/"weak"'}, None),
        ({"etag": "bare"}, None),
        ({"etag": '"' + "x" * 300 + '"'}, None),
        ({"last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, "Wed, 21 Oct 2015 07:28:00 GMT"),
    ],
)
def test_the_rest_is_asked_for_under_the_condition_that_it_is_the_same(desk, registry, name, kit, headers, sent):
    first = kit.MemorySink()
    registry.on("GET", "/blobs/", lie(**headers), times=1)
    desk.download(name, sink=first)
    sink = kit.MemorySink(bytearray(kit.BLOB[:777]), vouched=first.vouched)
    desk.download(name, sink=sink)
    assert bytes(sink.data) == kit.BLOB
    assert registry.log[-1].headers["range"] == "bytes=777-"
    assert registry.log[-1].headers.get("if-range") == sent


def test_what_another_host_said_is_no_condition(desk, registry, name, kit):
    desk.download(name, sink=kit.MemorySink(bytearray(kit.BLOB[:777]), vouched=("other.example", '"one"')))
    assert "if-range" not in registry.log[-1].headers


@pytest.mark.parametrize(("now", "restarts"), [('"two"', 1), ('"one"', 0)])
def test_a_host_that_has_something_else_now_sends_the_whole(desk, registry, name, kit, now, restarts):
    registry.on("GET", "/blobs/", lambda exchange: exchange.answer(everything(exchange, now)))
    wrong = bytearray(b"x" * 777) if restarts else bytearray(kit.BLOB[:777])
    sink = kit.MemorySink(wrong, vouched=(registry.host, '"one"'))
    desk.download(name, sink=sink)
    assert bytes(sink.data) == kit.BLOB
    assert (sink.restarts, registry.count(), sink.vouched) == (restarts, 1, (registry.host, now))


def everything(exchange, tag):
    """The whole blob whatever range was asked for."""
    request = dataclasses.replace(exchange.request, headers={})
    return exchange.registry.answer_to(request).with_headers(etag=tag)

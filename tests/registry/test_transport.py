"""One request: what goes out, and what is left behind."""

from __future__ import annotations

import socket

import pytest

from cri_shim.registry.cancel import Cancel
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.transport import Request, Transport
from cri_shim.registry.url import parse_url
from tests.fakes.descriptors import opened_within
from tests.fakes.misbehaviour import drop, raw, status
from tests.fakes.registry import FakeRegistry
from tests.fakes.rootfs_jobs import until


@pytest.fixture
def transport():
    made = Transport()
    yield made
    made.close()


def ask(transport, registry, path="/v2/", **more):
    return transport.open(Request("GET", parse_url(registry.url + path), **more), Cancel())


def test_headers_that_stand_twice(transport, registry):
    ask(
        transport, registry, headers=(("X-A", "1"), ("X-A", "2"), ("user-agent", "me"), ("Accept-Encoding", "gzip"))
    ).close()
    headers = registry.log[0].headers
    assert (headers["user-agent"], headers["accept-encoding"]) == ("me", "identity")
    registry.forget()
    with pytest.raises(ValueError, match="Invalid header value"):
        ask(transport, registry, headers=(("X-A", "a\r\nX-B: c"),))
    assert registry.count() == 0


def test_a_request_shows_no_secret():
    request = Request("POST", parse_url("https://a/b?q=s3cret"), (("Authorization", "s3cret"),), b"s3cret")
    assert "s3cret" not in repr(request)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6(transport):
    try:
        registry = FakeRegistry(address="::1")
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with registry, ask(transport, registry) as reply:
        assert reply.status == 200
        assert registry.log[0].headers["host"] == registry.host


def test_connections_are_used_again_after_errors_with_a_short_body(transport, registry):
    registry.on("GET", "", status(404, b"x" * 1000), times=5)
    for _ in range(5):
        ask(transport, registry).discard()
    assert registry.connections == 1
    registry.on("GET", "", status(404, b"x" * 100_000), times=2)
    for _ in range(2):
        ask(transport, registry).discard()
    assert registry.connections == 2  # a long one is not worth reading


def keep_one_that_ends(transport, registry) -> None:
    """Leave a connection to be used again, which the registry resets when it is."""
    ask(transport, registry, "/v2/none").discard()
    registry.on("GET", "", drop(), times=1)


def test_a_kept_connection_that_has_ended_is_replaced_without_a_word(transport, registry):
    keep_one_that_ends(transport, registry)
    ask(transport, registry).close()
    assert registry.connections == 2


def test_two_that_have_ended_are_a_failure_that_may_pass(transport, registry, monkeypatch):
    drop_pool = transport._drop_pool

    def dropped(request):
        drop_pool(request)
        keep_one_that_ends(transport, registry)  # what another thread gave back to the new pool meanwhile

    monkeypatch.setattr(transport, "_drop_pool", dropped)
    keep_one_that_ends(transport, registry)
    with pytest.raises(HostFailed, match="closed the connection") as caught:
        ask(transport, registry)
    assert (caught.value.kind, caught.value.again) == ("reset", True)
    ask(transport, registry).close()


def test_a_pool_that_another_thread_closes_is_replaced_without_a_word(transport, registry, monkeypatch):
    pool, closed = transport._pool, []

    def found(*arguments):
        got = pool(*arguments)
        if not closed:
            closed.append(got)
            got.close()
        return got

    monkeypatch.setattr(transport, "_pool", found)
    ask(transport, registry).close()
    assert (registry.count(), len(closed)) == (1, 1)


def test_nothing_stays_open(transport, registry):
    with opened_within() as opened:
        for _ in range(20):
            ask(transport, registry).body(10, "it")
            ask(transport, registry, "/v2/none").close()
            registry.then("GET", "", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"))
            with pytest.raises(Exception, match="broke off"):
                ask(transport, registry).body(10, "it")
        transport.close()
        registry.close()
        until(lambda: not opened(), "the end of every connection, on either side")


def test_replies_can_be_closed_twice(transport, registry):
    reply = ask(transport, registry)
    reply.close()
    reply.close()
    assert reply.read_into(memoryview(bytearray(5))) == 0


def test_pools_are_bounded(transport):
    for port in range(1, 200):
        transport._pool(Request("GET", parse_url(f"http://127.0.0.1:{port}/")), None)
    assert len(transport._pools) == 64

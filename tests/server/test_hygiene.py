"""What strangers on the socket may do to the daemon: connect and say nothing, say nonsense, leave halfway, be many.

Each time kubelet, who has been connected all along, gets its next answer, and what the strangers cost
is bounded while they are there and given back when they leave.
"""

from __future__ import annotations

import random
import socket
import time
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest

from cri_shim.pb import api_pb2, api_pb2_grpc
from tests.server.process import descriptors, memory_bytes, running, threads

MOST_CONNECTIONS = 1024  # grpc.max_allowed_incoming_connections in server/serve.py
OF_ITS_OWN = 64  # descriptors besides: sockets, pipes, the loop, a new one on its way
MORE_MEMORY_BYTES = 64 << 20
WITHIN_SECONDS = 60.0  # longer means that they wait for the strangers, who never end
MORE_THREADS = 32  # gRPC adds some when all of them are busy; one for each stranger would be a thousand

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
GREETING = PREFACE + frame(SETTINGS, 0, 0)


def literal(name: str, value: str) -> bytes:
    """A header as HPACK's "literal without indexing, new name" (RFC 7541, 6.2.2), lengths below 127."""
    return b"\x00" + b"".join(bytes([len(part)]) + part.encode() for part in (name, value))


CALL = b"".join(
    literal(name, value)
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/runtime.v1.ImageService/PullImage"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
)


@contextmanager
def kubelet(base):
    """A client that is connected before the strangers come."""
    with running(base) as (daemon, _), grpc.insecure_channel(f"unix:{base}/cri.sock") as channel:
        stub = api_pb2_grpc.ImageServiceStub(channel)
        stub.ImageFsInfo(api_pb2.ImageFsInfoRequest())
        yield daemon, stub


def answers(stub) -> None:
    """Two calls are answered, in milliseconds on a quiet machine."""
    assert stub.ImageFsInfo(api_pb2.ImageFsInfoRequest(), timeout=WITHIN_SECONDS).image_filesystems
    assert stub.ListImages(api_pb2.ListImagesRequest(), timeout=WITHIN_SECONDS).images


def newcomer(base) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    with grpc.insecure_channel(f"unix:{base}/cri.sock", options=options) as channel:
        request = api_pb2.ImageFsInfoRequest()
        assert api_pb2_grpc.ImageServiceStub(channel).ImageFsInfo(request, timeout=30, wait_for_ready=True)


def stranger(base, words: bytes, *, half_closed: bool = False) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(10)
    with suppress(OSError):  # shown the door
        one.connect(f"{base}/cri.sock")
        one.sendall(words)
        if half_closed:
            one.shutdown(socket.SHUT_WR)
    return one


def given_back(daemon, before: int) -> None:
    limit = time.monotonic() + 60
    while (now := descriptors(daemon.pid)) > before:
        assert time.monotonic() < limit, (now, before)
        time.sleep(0.01)


@pytest.mark.needs("root")  # the daemon lets nobody else look at its descriptors
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "half_closed", "attempts"),
    [
        (b"", False, 10_000),
        (b"", True, 3_000),
        (GREETING, False, 10_000),
        (GREETING, True, 3_000),
        (b"\x16\x03\x01" + b"\xff" * 61, False, 3_000),
        (b"GET / HTTP/1.1\r\n\r\n", False, 3_000),
        (GREETING + frame(HEADERS, 4, 1, CALL), False, 3_000),
    ],
    ids=["silent", "silent, half closed", "idle", "half closed", "tls", "http/1", "a call without a message"],
)
def test_thousands_of_connections(tmp_path, words, half_closed, attempts):
    with kubelet(tmp_path) as (daemon, stub), ExitStack() as strangers:
        answers(stub)
        before = descriptors(daemon.pid)
        threads_before, memory_before = threads(daemon.pid), memory_bytes(daemon.pid)
        most = 0
        for number in range(attempts):
            strangers.enter_context(stranger(tmp_path, words, half_closed=half_closed))
            if number % 500 == 0:
                most = max(most, descriptors(daemon.pid))
                answers(stub)
        assert most <= MOST_CONNECTIONS + before + OF_ITS_OWN
        assert threads(daemon.pid) <= threads_before + MORE_THREADS
        assert memory_bytes(daemon.pid) - memory_before < MORE_MEMORY_BYTES
        strangers.close()
        given_back(daemon, before)
        newcomer(tmp_path)


NONSENSE = {
    "random": random.Random(6).randbytes(100_000),
    "random frames": PREFACE + random.Random(7).randbytes(100_000),
    "a frame of 16 MiB": GREETING + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100_000,
    "data before headers": GREETING + frame(DATA, 0, 1, b"x" * 1000),
    "headers that never end": GREETING + frame(HEADERS, 0, 1, CALL) + frame(CONTINUATION, 0, 1, CALL) * 2000,
    "broken headers": GREETING + frame(HEADERS, 4, 1, b"\xff" * 1000),
    "a stream of the server's": GREETING + frame(HEADERS, 4, 2, CALL),
    "a message that is longer than it says": GREETING
    + frame(HEADERS, 4, 1, CALL)
    + frame(DATA, 1, 1, b"\x00\x00\x00\x00\x01xxxx"),
    "a message of 4 GiB": GREETING + frame(HEADERS, 4, 1, CALL) + frame(DATA, 0, 1, b"\x00\xff\xff\xff\xff" + b"x" * 1000),
    "a compressed bomb of nothing": GREETING + frame(HEADERS, 4, 1, CALL) + frame(DATA, 1, 1, b"\x01\x00\x00\x00\x04abcd"),
    "pings": GREETING + frame(PING, 0, 0, b"12345678") * 10_000,
    "settings": GREETING + frame(SETTINGS, 0, 0) * 10_000,
    "empty data": GREETING + frame(HEADERS, 4, 1, CALL) + frame(DATA, 0, 1) * 10_000,
    "calls that are reset at once": GREETING
    + b"".join(frame(HEADERS, 4, 2 * n + 1, CALL) + frame(RESET, 0, 2 * n + 1, b"\0\0\0\x08") for n in range(5000)),
}  # fmt: skip


@pytest.mark.needs("root")  # the daemon lets nobody else look at its descriptors
def test_nonsense(tmp_path):
    with kubelet(tmp_path) as (daemon, stub):
        answers(stub)
        before, memory_before = descriptors(daemon.pid), memory_bytes(daemon.pid)
        for _ in range(3):
            for words in NONSENSE.values():
                with stranger(tmp_path, words) as one:
                    answers(stub)
                    one.close()
        given_back(daemon, before)
        newcomer(tmp_path)
        assert memory_bytes(daemon.pid) - memory_before < MORE_MEMORY_BYTES


def test_a_call_with_too_many_headers_is_refused(tmp_path):
    with kubelet(tmp_path) as (_, stub):
        with pytest.raises(grpc.RpcError) as error:
            stub.ListImages(api_pb2.ListImagesRequest(), metadata=[("x", "y" * 100_000)])
        assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
        answers(stub)


def listing(calls: int) -> bytes:
    """What a client sends that asks for the list *calls* times."""
    path = [literal(":path", f"/runtime.v1.ImageService/{name}") for name in ("PullImage", "ListImages")]
    head = CALL.replace(*path)
    return b"".join(frame(HEADERS, 4, 2 * n + 1, head) + frame(DATA, 1, 2 * n + 1, bytes(5)) for n in range(calls))


@pytest.mark.needs("root")  # the daemon lets nobody else look at its descriptors
def test_clients_that_take_no_answer_hold_up_nobody(tmp_path):
    with kubelet(tmp_path) as (daemon, stub), ExitStack() as strangers:
        answers(stub)
        before, memory_before = descriptors(daemon.pid), memory_bytes(daemon.pid)
        for _ in range(20):
            strangers.enter_context(stranger(tmp_path, GREETING + listing(100)))
        answers(stub)
        assert memory_bytes(daemon.pid) - memory_before < MORE_MEMORY_BYTES
        strangers.close()
        given_back(daemon, before)


@pytest.mark.slow
def test_a_burst_of_calls_costs_nobody_his_answer(tmp_path):
    """gRPC cancels calls by lot when more than a thousand wait, unless it is told otherwise."""
    with kubelet(tmp_path) as (_, stub), ExitStack() as strangers:
        for _ in range(10):
            strangers.enter_context(stranger(tmp_path, GREETING + listing(900)))
        for _ in range(100):
            assert stub.ImageFsInfo(api_pb2.ImageFsInfoRequest(), timeout=60).image_filesystems


@pytest.mark.slow
def test_clients_that_take_no_answer_do_not_keep_the_daemon_alive(tmp_path):
    with kubelet(tmp_path) as (daemon, stub), ExitStack() as strangers:
        for _ in range(10):
            strangers.enter_context(stranger(tmp_path, GREETING + listing(900)))
        for _ in range(20):  # their calls were there before these: they are answered, as far as they take it
            stub.ImageFsInfo(api_pb2.ImageFsInfoRequest(), timeout=60)
        daemon.terminate()
        assert daemon.wait(60) == 0
        assert not (tmp_path / "cri.sock").exists()

"""Server-sent events on the admin socket: pulls as they happen."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from cri_shim.images.progress import PullProgress
from cri_shim.server import admin as admin_module
from cri_shim.server import events as events_module
from cri_shim.server.admin import admin_socket
from cri_shim.server.events import MOST_WAITING, Events
from tests.fakes.registry import FakeRegistry
from tests.server.pulling import pulling, sample


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(events_module, "LOOK_SECONDS", 0.01)


@asynccontextmanager
async def listening(path):
    """The head of the answer, and a reader of what comes after it."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        yield await reader.readuntil(b"\r\n\r\n"), reader
    finally:
        writer.close()
        await writer.wait_closed()


async def event(reader) -> tuple[str, object]:
    """The next event: its name and its data; a comment has no name."""
    async with asyncio.timeout(30):
        lines = (await reader.readuntil(b"\n\n")).decode().splitlines()
    if lines[0].startswith(":"):
        return "", lines[0]
    assert lines[0].startswith("event: ")
    assert lines[1].startswith("data: ")
    return lines[0][7:], json.loads(lines[1][6:])


async def test_a_pull_is_told_while_it_runs_and_when_it_has_ended(tmp_path):
    with FakeRegistry(("app:1", sample())) as registry:
        async with pulling(tmp_path, registry) as service:
            events = Events(service.images.pulls)
            service.images.when_pulled(events.ended)
            async with (
                admin_socket(tmp_path / "a", {}, {}, {"/events": events.stream}),
                listening(tmp_path / "a") as (head, reader),
            ):
                assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                assert await event(reader) == ("pulls", [])
                gate = registry.hold(f"/blobs/{sample().layers[1].digest}")
                pull = asyncio.create_task(service.pull(f"{registry.host}/app:1"))
                name, records = await event(reader)
                assert (name, [record["name"] for record in records]) == ("pulls", [f"{registry.host}/app:1"])
                gate.release()
                await pull
                while (told := await event(reader))[0] == "pulls":
                    assert told[1]
                assert (told[0], told[1]["phase"], len(told[1]["layers"])) == ("ended", "done", 2)
                assert await event(reader) == ("pulls", [])


async def test_who_leaves_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "QUIET_SECONDS", 0.0)
    events = Events(tuple)
    async with admin_socket(tmp_path / "a", {}, {}, {"/events": events.stream}):
        async with listening(tmp_path / "a") as (_, reader):
            assert await event(reader) == ("pulls", [])
            assert await event(reader) == ("", ": nothing")
            assert len(events._mailboxes) == 1
        async with asyncio.timeout(30):
            while events._mailboxes:
                await asyncio.sleep(0.005)


async def test_listeners_are_bounded_and_others_are_still_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(admin_module, "_STREAMS_AT_ONCE", 1)
    events = Events(tuple)
    async with (
        admin_socket(tmp_path / "a", {}, {}, {"/events": events.stream}),
        listening(tmp_path / "a") as (_, first),
        listening(tmp_path / "a") as (head, second),
    ):
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert json.loads(await second.read()) == {"error": "1 listen already"}
        assert await event(first) == ("pulls", [])


async def test_one_who_does_not_read_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(admin_module, "_PATIENCE_SECONDS", 0.05)
    pull = PullProgress("x" * 100_000)
    events = Events(lambda: [pull])
    async with (
        admin_socket(tmp_path / "a", {}, {}, {"/events": events.stream}),
        listening(tmp_path / "a") as (_, reader),
    ):
        assert await reader.readexactly(13) == b"event: pulls\n"
        reader._transport.pause_reading()
        assert len(events._mailboxes) == 1
        async with asyncio.timeout(30):
            while events._mailboxes:
                await asyncio.sleep(0.005)


async def test_what_waits_for_a_listener_is_bounded():
    events = Events(tuple)
    stream = events.stream()
    await anext(stream)
    for _ in range(MOST_WAITING + 5):
        events.ended(PullProgress("a"), None)
    text = await anext(stream)
    await stream.aclose()
    assert text.startswith(": 5 were dropped\n\nevent: ended\n")
    assert text.count("event: ended") == MOST_WAITING
    assert not events._mailboxes


async def test_only_get_listens(tmp_path):
    async with admin_socket(tmp_path / "a", {}, {}, {"/events": Events(tuple).stream}):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        writer.write(b"POST /events HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 405 ")
        writer.close()
        await writer.wait_closed()

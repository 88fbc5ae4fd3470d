from __future__ import annotations

import asyncio
import json
import os
import stat

import pytest

from cri_shim.errors import ConfigError
from cri_shim.server.admin import Text, admin_socket

PAGES = {"/status": lambda: {"images": 3, "path": os.curdir}, "/broken": lambda: 1 / 0}


async def ask(path, *parts: bytes) -> tuple[bytes, object]:
    reader, writer = await asyncio.open_unix_connection(path)
    for part in parts:
        writer.write(part)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return head.partition(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"GET /../status HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"POST /status HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"\xff\x00 \xfe\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"HTTP/1.1 500 Internal Server Error"),
        (b"GET /" + b"x" * 9000 + b"\r\n\r\n", b"HTTP/1.1 431 Request Header Fields Too Large"),
    ],
)
async def test_answers(tmp_path, request_, status):
    async with admin_socket(tmp_path / "a", PAGES):
        assert (await ask(tmp_path / "a", request_))[0] == status


async def test_the_page_is_json(tmp_path):
    async with admin_socket(tmp_path / "a", PAGES):
        assert (await ask(tmp_path / "a", b"GET /status HTTP/1.0\r\n\r\n"))[1] == {"images": 3, "path": "."}


async def test_a_head_may_come_byte_by_byte(tmp_path):
    parts = [bytes([byte]) for byte in b"GET /status HTTP/1.1\r\n\r\n"]
    async with admin_socket(tmp_path / "a", PAGES):
        assert (await ask(tmp_path / "a", *parts))[0] == b"HTTP/1.1 200 OK"


async def test_connections_are_bounded(tmp_path):
    async with admin_socket(tmp_path / "a", PAGES):
        idle = [await asyncio.open_unix_connection(tmp_path / "a") for _ in range(17)]
        assert await idle[16][0].read() == b""
        idle[0][1].write(b"GET /status HTTP/1.1\r\n\r\n")
        assert (await idle[0][0].read()).startswith(b"HTTP/1.1 200 OK")
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()


async def test_the_socket_is_ours_alone_and_goes_with_us(tmp_path):
    async with admin_socket(tmp_path / "a", PAGES):
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert not (tmp_path / "a").exists()


async def test_a_file_in_its_place_is_left_alone(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ConfigError, match="is not a socket"):
        async with admin_socket(tmp_path / "a", PAGES):
            pass
    assert (tmp_path / "a").read_text() == "x"


async def test_a_page_may_be_plain_text_with_a_status_of_its_own(tmp_path):
    async with admin_socket(tmp_path / "a", {"/readyz": lambda: Text("not yet\n", status="503 Service Unavailable")}):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert head.split(b"\r\n")[:2] == [
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: text/plain; charset=utf-8",
    ]
    assert body == b"not yet\n"


async def asked(fields):
    if "image" not in fields:
        raise ConfigError("no image is named")
    return {"named": fields["image"]}


async def test_a_question_takes_the_fields_of_its_query(tmp_path):
    async with admin_socket(tmp_path / "a", PAGES, {"/explain": asked}):
        answer = await ask(tmp_path / "a", b"GET /explain?image=reg.io%2Fa%3A1 HTTP/1.1\r\n\r\n")
        assert answer == (b"HTTP/1.1 200 OK", {"named": "reg.io/a:1"})
        answer = await ask(tmp_path / "a", b"GET /explain HTTP/1.1\r\n\r\n")
        assert answer == (b"HTTP/1.1 400 Bad Request", {"error": "no image is named"})

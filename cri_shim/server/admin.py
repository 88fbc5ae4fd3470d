"""The admin socket: pages over HTTP/1.1 on a socket of root alone, so that curl can ask too (`GET /status`).

Small on purpose: one request per connection, no body, a head of 8 KiB and five seconds at most, sixteen at once. A
question, which somebody else has to be asked for, may take longer. A stream goes on until its reader leaves, or is too
slow for it; there are four at most.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import urllib.parse
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ShimError
from cri_shim.server.endpoint import make_free, narrow_umask
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    Page = Callable[[], object]
    Question = Callable[[Mapping[str, str]], Awaitable[object]]
    Stream = Callable[[], AsyncGenerator[str, None]]

log = logging.getLogger(__name__)

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
)
LONGEST_HEAD_BYTES = 8192
_PATIENCE_SECONDS = 5.0
_QUESTION_SECONDS = 3600.0  # an import may copy many gigabytes
_AT_ONCE = 16
_STREAMS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Text:
    """A page that is no JSON. *status* is that of HTTP, with its words."""

    content: str
    media_type: str = "text/plain; charset=utf-8"
    status: str = "200 OK"


class Admin:
    """Answers with the pages of *pages*, a path each; a page is whatever JSON can tell, or a `Text`.

    *questions* are pages that take the fields of the query, and time; *streams* are server-sent events.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        questions: Mapping[str, Question] | None = None,
        streams: Mapping[str, Stream] | None = None,
    ) -> None:
        self._pages = pages
        self._questions = questions or {}
        self._streams = streams or {}
        self._open = self._streaming = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; one too many is closed without a word."""
        if self._open == _AT_ONCE:
            writer.close()
            return
        self._open += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                head = await _read_head(reader)
            if (stream := self._streams.get(_path(head))) is not None:
                await self._flow(stream, writer)
            else:
                async with asyncio.timeout(_QUESTION_SECONDS):
                    status, body = await self._respond(head)
                await _written(writer, _response(body if isinstance(body, Text) else _as_json(status, body)))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            log.debug("an admin connection ended early")
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _flow(self, stream: Stream, writer: asyncio.StreamWriter) -> None:
        if self._streaming == _STREAMS_AT_ONCE:
            busy = _as_json("503 Service Unavailable", {"error": f"{_STREAMS_AT_ONCE} listen already"})
            return await _written(writer, _response(busy))
        self._streaming += 1
        try:
            await _written(writer, _STREAM_HEAD)
            async with aclosing(stream()) as pieces:
                async for piece in pieces:
                    await _written(writer, piece.encode())
        finally:
            self._streaming -= 1

    async def _respond(self, head: bytes | None) -> tuple[str, object]:
        if head is None:
            return "431 Request Header Fields Too Large", {"error": f"more than {LONGEST_HEAD_BYTES} bytes"}
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path, _, query = rest.partition(b" ")[0].decode("ascii", "replace").partition("?")
        if method != b"GET":
            return "405 Method Not Allowed", {"error": "only GET"}
        if path in self._questions:
            return await self._told(self._questions[path](dict(urllib.parse.parse_qsl(query))))
        if path not in self._pages:
            known = {"pages": sorted((*self._pages, *self._questions)), "streams": sorted(self._streams)}
            return "404 Not Found", {"error": "no such page", **known}
        return await self._told(_at_once(self._pages[path]))

    async def _told(self, page: Awaitable[object]) -> tuple[str, object]:
        try:
            return "200 OK", await page
        except (ShimError, RootfsError) as error:
            return "400 Bad Request", {"error": str(error)}
        except Exception as error:  # the admin socket must not end with what it is meant to look at
            log.error("an admin page failed", exc_info=error)
            return "500 Internal Server Error", {"error": "the log has the details"}


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    """Return the head of the request, None when it is too long."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return None


def _path(head: bytes | None) -> str:
    """Return the path of a GET, "" for any other request."""
    line = (head or b"").partition(b"\r\n")[0].decode("ascii", "replace")
    method, _, rest = line.partition(" ")
    return rest.partition(" ")[0].partition("?")[0] if method == "GET" else ""


async def _written(writer: asyncio.StreamWriter, data: bytes) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        writer.write(data)
        await writer.drain()


async def _at_once(page: Page) -> object:
    return page()


@asynccontextmanager
async def admin_socket(
    path: Path,
    pages: Mapping[str, Page],
    questions: Mapping[str, Question] | None = None,
    streams: Mapping[str, Stream] | None = None,
) -> AsyncIterator[None]:
    """Answer on *path*, mode 0600, while the block runs.

    Raises:
        ConfigError, OSError: the socket cannot be made.
    """
    make_free(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        with narrow_umask():
            listening.bind(os.fspath(path))
        server = await asyncio.start_unix_server(
            Admin(pages, questions, streams).answer, sock=listening, limit=LONGEST_HEAD_BYTES
        )
        try:
            yield
        finally:
            server.close()
            with suppress(OSError):
                os.unlink(path)


def _as_json(status: str, body: object) -> Text:
    return Text(json.dumps(body, default=str) + "\n", "application/json", status)


def _response(page: Text) -> bytes:
    content = page.content.encode()
    head = (
        f"HTTP/1.1 {page.status}\r\nContent-Type: {page.media_type}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + content

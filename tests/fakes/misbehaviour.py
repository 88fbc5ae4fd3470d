"""What a fake registry can be told to do instead of answering: reset, cut, lie, drip, wait at a gate.

A behaviour is any callable that takes an `Exchange`: `registry.on("GET", "/blobs/", cut(1000), times=1)`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import termios
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

WAIT = 20.0  # seconds before a forgotten gate lets go
REASONS = {200: "OK", 206: "Partial Content", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}
Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Seen:
    """One request as it came: path without the query, header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    body: bytes = b""

    @property
    def form(self) -> dict[str, str]:
        """The fields of the query, or of a form in the body."""
        text = self.body.decode() if self.body else self.query
        return dict(urllib.parse.parse_qsl(text))


@dataclass(frozen=True)
class Answer:
    """What the registry would say if nothing were ordered otherwise."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def with_headers(self, **changes: str | None) -> Answer:
        """Replace headers (`content_type="x"`); None removes one."""
        names = {name.replace("_", "-").lower(): value for name, value in changes.items()}
        kept = tuple((name, value) for name, value in self.headers if name.lower() not in names)
        return Answer(self.status, (*kept, *((n, v) for n, v in names.items() if v is not None)), self.body)


class Gate:
    """Holds requests: `arrived.wait()` tells that one came, `release()` lets all go on."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self._open = threading.Event()

    def release(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        self.arrived.set()
        self._open.wait(WAIT)

    def wait_arrived(self) -> None:
        assert self.arrived.wait(WAIT), "no request came to the gate"


class Finished(Exception):  # noqa: N818 - not an error: the connection is over
    """The connection was closed on purpose."""


class Honest(Protocol):
    """The registry behind an exchange."""

    def answer_to(self, request: Seen) -> Answer: ...


@dataclass
class Exchange:
    """One request and the socket to answer it on."""

    registry: Honest
    request: Seen
    socket: socket.socket

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Finished from None

    def head(self, status: int, headers: Headers) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", *(f"{n}: {v}" for n, v in headers), "", ""]
        self.send("\r\n".join(lines).encode("latin-1"))

    def answer(self, answer: Answer) -> None:
        """Send *answer* with an honest Content-Length (unless it brings its own)."""
        names = {name.lower() for name, _ in answer.headers}
        length = () if "content-length" in names else (("Content-Length", str(len(answer.body))),)
        self.head(answer.status, (*answer.headers, *length))
        if self.request.method != "HEAD":
            self.send(answer.body)

    def default(self) -> Answer:
        return self.registry.answer_to(self.request)

    def finish(self) -> None:
        """Close with FIN."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        raise Finished

    def reset(self) -> None:
        """Close with RST, after what was sent has reached the peer."""
        with contextlib.suppress(OSError, ValueError):
            while struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, b"\0" * 4))[0]:
                os.sched_yield()
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
        raise Finished


Behaviour = Callable[[Exchange], None]


def status(code: int, body: bytes = b"", headers: Headers = ()) -> Behaviour:
    return lambda exchange: exchange.answer(Answer(code, tuple(headers), body))


def errors(code: int, name: str, message: str) -> Behaviour:
    """A status with a registry's JSON error document."""
    body = json.dumps({"errors": [{"code": name, "message": message}]}).encode()
    return status(code, body, [("Content-Type", "application/json")])


def redirect(to: str, code: int = 307) -> Behaviour:
    return status(code, headers=[("Location", to)])


def cut(after: int, *, reset: bool = True) -> Behaviour:
    """An honest head, *after* bytes of the body, then RST (or FIN)."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[:after])
        exchange.reset() if reset else exchange.finish()

    return behave


def raw(data: bytes, *, reset: bool = False) -> Behaviour:
    """These bytes and nothing else, then the end of the connection."""

    def behave(exchange: Exchange) -> None:
        exchange.send(data)
        exchange.reset() if reset else exchange.finish()

    return behave


def drop() -> Behaviour:
    """RST without a word."""
    return raw(b"", reset=True)


def lie(**headers: str | None) -> Behaviour:
    """The usual answer with other headers: `lie(content_type="text/html", docker_content_digest=None)`."""

    def behave(exchange: Exchange) -> None:
        exchange.answer(exchange.default().with_headers(**headers))

    return behave


def swap(body: bytes, **headers: str | None) -> Behaviour:
    """The usual headers around another body."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default().with_headers(**headers)
        exchange.answer(Answer(answer.status, answer.headers, body))

    return behave


def whole() -> Behaviour:
    """Ignore Range: 200 and everything."""

    def behave(exchange: Exchange) -> None:
        headers = {name: value for name, value in exchange.request.headers.items() if name != "range"}
        seen = exchange.request
        exchange.answer(exchange.registry.answer_to(Seen(seen.method, seen.path, headers, seen.query, seen.body)))

    return behave


def chunked(piece: int = 1000, *, trailer: bytes = b"", last: bytes = b"0\r\n") -> Behaviour:
    """The usual body in chunks; *last* and *trailer* as given."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Transfer-Encoding", "chunked")))
        for at in range(0, len(answer.body), piece):
            part = answer.body[at : at + piece]
            exchange.send(b"%x\r\n%b\r\n" % (len(part), part))
        exchange.send(last + trailer + b"\r\n")
        if last != b"0\r\n":
            exchange.finish()

    return behave


def until_close() -> Behaviour:
    """No length at all: the body ends with the connection."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Connection", "close")))
        exchange.send(answer.body)
        exchange.finish()

    return behave


def drip(pause: Callable[[int], None], piece: int = 1) -> Behaviour:
    """The usual answer, head and body, in pieces; `pause(bytes sent)` is called after each (wait on a Gate there)."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        for at in range(0, len(answer.body), piece):
            exchange.send(answer.body[at : at + piece])
            pause(at + piece)

    return behave


def partly(after: int, gate: Gate) -> Behaviour:
    """An honest head and *after* bytes of the body, the rest when the gate opens."""

    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[:after])
        gate.pass_through()
        exchange.send(answer.body[after:])

    return behave


def held(gate: Gate) -> Behaviour:
    """The usual answer, when the gate opens."""

    def behave(exchange: Exchange) -> None:
        gate.pass_through()
        exchange.answer(exchange.default())

    return behave

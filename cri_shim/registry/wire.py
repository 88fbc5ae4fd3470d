"""One exchange on a socket: its clocks, its bounds, and the handle by which another thread can end it.

`http.client` reads the head of an answer through `TimedReader`, which stops it at a number of bytes and at a time, not
only at a silence; the body is read through the same reader with limits of its own. Status line and headers are checked
line by line (RFC 9112) before the standard library sees them, because it is lenient where two readers could differ.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from cri_shim.registry.framing import Ended, FramingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.policy import AddressRule, Ip

HEAD_BYTES = 64 << 10  # status line and headers, interim answers included
HEAD_LINES = 128
BUFFER_BYTES = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] (?:100|[2-5][0-9]{2})(?: [^\x00\r\n]*)?\r\n")
_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00\r\n]*\r\n")


class Stalled(Exception):
    """Nothing came for too long, or too little."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a peer may take, in seconds of the monotonic clock.

    Attributes:
        connect_seconds: To look up, connect and shake hands.
        head_seconds: From the request to the end of the headers.
        idle_seconds: Without a byte of the body.
        progress_seconds: Within each such time, `progress_bytes` of the body must come.
    """

    connect_seconds: float = 30.0
    head_seconds: float = 60.0
    idle_seconds: float = 60.0
    progress_seconds: float = 300.0
    progress_bytes: int = 64 << 10


class Exchange:
    """A request under way. Its socket can be shut down from any thread, in any phase."""

    def __init__(self, cancel: Cancel, rule: AddressRule, limits: Limits, clock: Callable[[], float]) -> None:
        self.cancel = cancel
        self.rule = rule
        self.limits = limits
        self.clock = clock
        self.peer: Ip | None = None  # None behind a proxy that resolved the name
        self.fresh = False  # the connection was made for this request
        self.shaken = False  # the TLS handshake, if there is one, is done
        self.in_body = False  # the head was read
        self.late = False  # a watchdog shut the socket down
        self.head: Head | None = None
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None

    def watch(self, connection: socket.socket) -> None:
        """Take a second descriptor of *connection*.

        The first one changes hands (TLS takes it over, a response outlives its connection); this one stays ours.
        """
        handle = socket.socket(fileno=os.dup(connection.fileno()))
        with self._lock:
            self._handle, old = handle, self._handle
        if old is not None:
            old.close()
        self.cancel.check()

    def shut_down(self) -> None:
        """End whatever the thread of this exchange is waiting for."""
        with self._lock, contextlib.suppress(OSError):
            if self._handle is not None:
                self._handle.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Let go of the socket."""
        with self._lock:
            self._handle, old = None, self._handle
        if old is not None:
            old.close()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Shut the socket down unless what is inside is done in time; for what cannot be given a deadline."""
        timer = threading.Timer(seconds, self._too_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _too_late(self) -> None:
        self.late = True
        self.shut_down()


class TimedReader(io.RawIOBase):
    """The reading side of a socket under the clocks of an exchange."""

    def __init__(self, connection: socket.socket, exchange: Exchange) -> None:
        super().__init__()
        self._connection = connection
        self._stream = cast("io.RawIOBase", connection.makefile("rb", buffering=0))
        self._exchange = exchange
        self._until = exchange.clock() + exchange.limits.head_seconds
        self._idle = exchange.limits.head_seconds
        self._left = exchange.limits.progress_bytes
        self._in_body = False
        self._set: float | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def begin_body(self) -> None:
        """The head is over: from here the limits of the body count."""
        self._in_body = True
        self._idle = self._exchange.limits.idle_seconds
        self._begin_window()

    def pardon(self, seconds: float) -> None:
        """Give the peer *seconds* more, in which it was not asked for anything."""
        self._until += seconds

    def _begin_window(self) -> None:
        limits = self._exchange.limits
        self._until = self._exchange.clock() + limits.progress_seconds
        self._left = limits.progress_bytes

    def readinto(self, buffer: object) -> int:
        """Read what there is.

        Raises:
            Stalled: Too slow.
            OSError: The connection broke.
        """
        self._arm()
        try:
            got = self._stream.readinto(cast("memoryview", buffer)) or 0
        except TimeoutError:
            raise Stalled from None
        if self._in_body:
            self._left -= got
            if self._left <= 0:
                self._begin_window()
        return got

    def _arm(self) -> None:
        self._exchange.cancel.check()
        left = self._until - self._exchange.clock()
        if left <= 0:
            raise Stalled
        remaining = self._exchange.cancel.remaining_seconds()
        timeout = max(0.001, min(self._idle, left, self._idle if remaining is None else remaining))
        if timeout != self._set:
            self._connection.settimeout(timeout)
            self._set = timeout

    def close(self) -> None:
        """Let go of the socket (it closes when its connection has, too)."""
        self._stream.close()
        super().close()


class HeadReader:
    """Feeds the lines of a head to `http.client`, each of them checked, all of them bounded."""

    def __init__(self, stream: io.BufferedReader[TimedReader]) -> None:
        self._stream = stream
        self._bytes = HEAD_BYTES
        self._lines = HEAD_LINES
        self._expect_status = True

    def readline(self, size: int = -1, /) -> bytes:
        """Return the next line, or b"" where the connection ended before the first.

        Raises:
            FramingError: The head is too large, or a line is not what it should be.
            Ended: The connection ended within the head.
        """
        if self._lines == 0 or self._bytes == 0:
            raise FramingError("the head of the answer is too large")
        line = self._stream.readline(min(size, self._bytes) if size >= 0 else self._bytes)
        if not line and self._lines < HEAD_LINES:
            raise Ended
        self._bytes -= len(line)
        self._lines -= 1
        if line:
            self._check(line)
        return line

    def _check(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            raise FramingError("a line of the answer's head is too long or breaks off")
        if self._expect_status and _STATUS.fullmatch(line) is None:
            raise FramingError("the answer is not HTTP/1.1")
        if not self._expect_status and line != b"\r\n" and _HEADER.fullmatch(line) is None:
            raise FramingError("a header of the answer cannot be read")
        self._expect_status = line == b"\r\n"  # what follows the headers is another status line, after a 100

    def close(self) -> None:
        """Close the stream beneath."""
        self._stream.close()


class Head(http.client.HTTPResponse):
    """`http.client`'s answer with the head read through our bounds; the body is read from `stream` by us."""

    def __init__(self, exchange: Exchange, sock: socket.socket, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self.fp.close()
        self._reader = TimedReader(sock, exchange)
        self.stream = io.BufferedReader(self._reader, BUFFER_BYTES)
        self.fp = cast("io.BufferedReader", self.stream)
        self._exchange = exchange
        exchange.head = self

    def begin(self) -> None:
        """Read the status line and the headers."""
        self.fp = cast("io.BufferedReader", HeadReader(self.stream))
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = cast("io.BufferedReader", self.stream)
        self._exchange.in_body = True
        self._reader.begin_body()

    def pardon(self, seconds: float) -> None:
        """Give the peer *seconds* more for what is under way."""
        self._reader.pardon(seconds)


def monotonic() -> float:
    """The clock that transfers are measured with."""
    return time.monotonic()

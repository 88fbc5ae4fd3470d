"""How the body of an answer is delimited, and reading it: strict, because two opinions on it are an attack. Pure.

RFC 9112, section 6. Lengths are digits and agree with each other; a length beside chunks is refused, as is any transfer
coding but `chunked`; chunk sizes are hex digits, extensions and trailers bounded, lines end in CR LF.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK_LINE = 256  # bytes of a chunk's size with its extensions
TRAILERS = 16
TRAILER_LINE = 1024
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class Stream(Protocol):
    """What a body is read from: a buffered reader on a socket."""

    def readinto1(self, buffer: memoryview, /) -> int:
        """Read what one read of the socket gives."""

    def readline(self, size: int, /) -> bytes:
        """Read to the end of a line, or *size* bytes."""


class FramingError(Exception):
    """The peer's idea of HTTP is not ours."""


class Ended(Exception):
    """The connection ended before the body did."""


class Body(Protocol):
    """A body that knows where it ends."""

    length_bytes: int | None

    def read_into(self, buffer: memoryview) -> int:
        """Read what one read gives, 0 only at the end.

        Raises:
            Ended: The stream ended before.
            FramingError: Chunks are broken.
        """


class Measured:
    """A body of a length told before."""

    def __init__(self, stream: Stream, length_bytes: int) -> None:
        self.length_bytes: int | None = length_bytes
        self._stream = stream
        self._left = length_bytes

    def read_into(self, buffer: memoryview) -> int:
        """See `Body`."""
        if self._left == 0:
            return 0
        got = self._stream.readinto1(buffer[: self._left])
        if got == 0:
            raise Ended
        self._left -= got
        return got


class UntilClose:
    """A body that ends with the connection; whether it is whole is for a digest to say."""

    length_bytes: int | None = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read_into(self, buffer: memoryview) -> int:
        """See `Body`."""
        return self._stream.readinto1(buffer)


class Chunked:
    """A body in chunks."""

    length_bytes: int | None = None

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = 0
        self._done = False

    def read_into(self, buffer: memoryview) -> int:
        """See `Body`."""
        if self._left == 0 and not self._done:
            self._begin()
        if self._done:
            return 0
        got = self._stream.readinto1(buffer[: self._left])
        if got == 0:
            raise Ended
        self._left -= got
        if self._left == 0 and self._line(3) != b"\r\n":
            raise FramingError("a chunk is longer than it said")
        return got

    def _begin(self) -> None:
        found = _CHUNK.fullmatch(self._line(CHUNK_LINE))
        if found is None:
            raise FramingError("the size of a chunk cannot be read")
        self._left = int(found[1], 16)
        if self._left == 0:
            self._end()

    def _end(self) -> None:
        for _ in range(TRAILERS + 1):
            if self._line(TRAILER_LINE) == b"\r\n":
                self._done = True
                return
        raise FramingError("there is no end of trailers")

    def _line(self, limit: int) -> bytes:
        line = self._stream.readline(limit)
        if not line:
            raise Ended
        if not line.endswith(b"\r\n"):
            raise FramingError("a line between chunks is too long or does not end in CR LF")
        return line


def body_of(stream: Stream, method: str, status: int, headers: Sequence[tuple[str, str]]) -> Body:
    """Return the body of an answer; *headers* have lower case names.

    Raises:
        FramingError: The headers contradict themselves.
    """
    lengths = {value.strip() for name, value in headers if name == "content-length"}
    codings = [value.strip().lower() for name, value in headers if name == "transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        raise FramingError("the answer tells its length in two ways")
    if any(not _LENGTH.fullmatch(length) for length in lengths):
        raise FramingError("the length of the answer is not a number")
    if codings and codings != ["chunked"]:
        raise FramingError("the answer has a transfer coding that was not asked for")
    if method == "HEAD" or status in (204, 304):
        return Measured(stream, 0)
    if codings:
        return Chunked(stream)
    return Measured(stream, int(lengths.pop())) if lengths else UntilClose(stream)

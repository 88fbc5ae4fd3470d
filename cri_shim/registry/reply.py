"""An answer of a registry: its head is here, its body is read as it comes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol, Self

from cri_shim.errors import LimitExceeded
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.framing import Body, body_of
from cri_shim.registry.trouble import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.registry.rates import Meter
    from cri_shim.registry.url import Url
    from cri_shim.registry.wire import Exchange

PIECE_BYTES = 1 << 20  # the buffer that a body is read into
FULL_ENOUGH_BYTES = 256 << 10  # when a piece is handed on though there is room
DISCARD_BYTES = 64 << 10  # what is read of an unwanted body so that its connection can be used again
Headers = tuple[tuple[str, str], ...]


class Carrier(Protocol):
    """The connection's side of an answer (urllib3's response)."""

    @property
    def status(self) -> int: ...  # noqa: D102 - what it says
    def close(self) -> None: ...  # noqa: D102
    def release_conn(self) -> None: ...  # noqa: D102


class Reply:
    """An answer. Close it, or read it to its end.

    Attributes:
        url: Whose answer it is.
        peer: The address it came from; None where only a proxy knows it.
        headers: Names in lower case, in the order they came.
    """

    def __init__(self, method: str, url: Url, exchange: Exchange, carrier: Carrier, headers: Headers) -> None:
        """Take over *carrier*.

        Raises:
            FramingError: The headers contradict themselves about the body.
        """
        assert exchange.head is not None
        self.status = carrier.status
        self.url = url
        self.peer = exchange.peer
        self.headers = headers
        self._exchange = exchange
        self._head = exchange.head
        self._carrier = carrier
        self._open = True
        self._body: Body = body_of(self._head.stream, method, self.status, headers)
        if self._body.length_bytes == 0:
            self._done()

    @property
    def length_bytes(self) -> int | None:
        """The length of the body, where the answer tells it."""
        return self._body.length_bytes

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a header, *name* in lower case."""
        return tuple(value for key, value in self.headers if key == name)

    def get(self, name: str) -> str:
        """Return the only value of a header, or "" where it is missing or there are several."""
        values = self.all(name)
        return values[0].strip() if len(values) == 1 else ""

    def read_into(self, buffer: memoryview) -> int:
        """Read some of the body; 0 is its end.

        Raises:
            HostFailed: The connection broke, stalled or ended early, or the framing is broken.
            Cancelled: Meanwhile.
        """
        if not self._open:
            return 0
        with translated(self.url.authority, self._exchange, self.close), self._cancellable():
            got = self._body.read_into(buffer)
        if got == 0:
            self._done()
        return got

    def pieces(self, meter: Meter | None = None) -> Iterator[memoryview]:
        """Yield the body in pieces of at most 1 MiB, as *meter* allows; each is valid until the next is asked for.

        Small reads (a TLS record has 16 KiB) are gathered. What came before a failure is yielded before it is raised.
        """
        buffer = memoryview(bytearray(min(PIECE_BYTES, self.length_bytes or PIECE_BYTES)))
        failure: HostFailed | None = None
        came = 0
        while failure is None:
            filled, failure = self._filled(buffer, came, meter)
            came += filled
            if filled:
                yield buffer[:filled]
            elif failure is None:
                return
        raise failure

    def _filled(self, buffer: memoryview, came: int, meter: Meter | None) -> tuple[int, HostFailed | None]:
        """Gather what may come now, after *came* bytes; nothing has to be waited for to learn that there is no more."""
        most = len(buffer) if self.length_bytes is None else min(len(buffer), self.length_bytes - came)
        if meter is None or most == 0:
            return self._gathered(buffer)
        with meter.portion(most, self._exchange.cancel) as portion:
            self._head.pardon(portion.waited)
            portion.used, failure = self._gathered(buffer[: portion.size_bytes])
        return portion.used, failure

    def _gathered(self, buffer: memoryview) -> tuple[int, HostFailed | None]:
        filled, enough = 0, min(FULL_ENOUGH_BYTES, len(buffer))
        while filled < enough:
            try:
                got = self.read_into(buffer[filled:])
            except HostFailed as error:
                return filled, error
            if got == 0:
                break
            filled += got
        return filled, None

    def body(self, limit_bytes: int, what: str) -> bytes:
        """Return the whole body of at most *limit_bytes*.

        Raises:
            LimitExceeded: It is larger; *what* says what it is.
            HostFailed: As `read_into`.
        """
        too_large = LimitExceeded(f"{what} from {self.url.authority} is larger than {limit_bytes} bytes")
        if self.length_bytes is not None and self.length_bytes > limit_bytes:
            self.close()
            raise too_large
        data = self.start(limit_bytes + 1)
        if len(data) > limit_bytes:
            self.close()
            raise too_large
        return data

    def start(self, size_bytes: int) -> bytes:
        """Return up to *size_bytes* from where the body stands."""
        data = bytearray()
        buffer = memoryview(bytearray(min(size_bytes, DISCARD_BYTES)))
        while len(data) < size_bytes and (got := self.read_into(buffer[: size_bytes - len(data)])):
            data += buffer[:got]
        return bytes(data)

    def discard(self) -> None:
        """Be done with it; a short rest is read, so that the connection can be used again."""
        with contextlib.suppress(HostFailed):
            if (self.length_bytes or 0) <= DISCARD_BYTES:
                self.start(DISCARD_BYTES + 1)
        self.close()

    def close(self) -> None:
        """Let go; what was not read is lost, and the connection with it."""
        if self._open:
            self._carrier.close()
            self._done()

    def _done(self) -> None:
        if self._open:
            self._open = False
            self._exchange.finish()
            self._head.close()
            self._carrier.release_conn()

    def _cancellable(self) -> contextlib.AbstractContextManager[None]:
        return self._exchange.cancel.doing(self._exchange.shut_down)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

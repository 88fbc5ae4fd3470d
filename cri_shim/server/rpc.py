"""The one wrapper around every call: it counts, logs, maps errors to codes, and turns calls away while draining.

A handler takes a request and returns an answer; it never sees gRPC's context. One that plans by its caller's deadline
is made with `timed_rpc` and is told the seconds that are left. A client that cancels, or whose deadline passes, reaches
the handler as a cancellation, which goes through; one whose deadline has passed before its turn never reaches it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from grpc import StatusCode

from cri_shim.errors import DeadlineExceeded, Draining, InvalidRequest
from cri_shim.log import fields
from cri_shim.server.describe import describe
from cri_shim.server.status import is_bug, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message
    from grpc.aio import ServicerContext

log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 5.0
_STOPPING = "cri-shim is stopping; try again when it is back"


class Gate:
    """Which calls are running, and whether another one may begin. Belongs to the event loop.

    `stopping` is set when the daemon takes no new calls any more. `ended` is told of every call: its method, the
    seconds it took, and the name of the code it failed with, or "".
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.ended: Callable[[str, float, str], None] = lambda _method, _seconds, _code: None
        self._expired = False
        self._running: set[asyncio.Task[Any]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        """How many calls are being answered."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether the daemon takes no new calls any more."""
        return self.stopping.is_set()

    @property
    def expired(self) -> bool:
        """Whether the calls that still run were cancelled because the daemon ends."""
        return self._expired

    def enter(self, call: asyncio.Task[Any]) -> None:
        """Note that *call* begins.

        Raises:
            Draining: the daemon is stopping.
        """
        if self.draining:
            raise Draining(_STOPPING)
        self._running.add(call)
        self._empty.clear()

    def leave(self, call: asyncio.Task[Any]) -> None:
        """Note that *call* has ended."""
        self._running.discard(call)
        if not self._running:
            self._empty.set()

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Take no new calls, give those that run *seconds* to end or until *hurry*, and cancel what is left then."""
        self.stopping.set()
        waits = {asyncio.ensure_future(self._empty.wait()), asyncio.ensure_future(hurry.wait())}
        _, late = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in late:
            wait.cancel()
        self._expired = True
        for call in tuple(self._running):
            call.cancel()
        try:
            await asyncio.wait_for(self._empty.wait(), _FAREWELL_SECONDS)
        except TimeoutError:
            log.error("calls that were cancelled did not end", extra=fields(calls=self.running))


class Gated(Protocol):
    """A service: it has the gate that its calls go through."""

    gate: Gate


S = TypeVar("S", bound=Gated)
Q = TypeVar("Q", bound="Message")
R = TypeVar("R", bound="Message | bytes")  # an answer may be in the form that travels


def rpc(handler: Callable[[S, Q], Awaitable[R]]) -> Callable[[S, Q, ServicerContext[Q, R]], Awaitable[R]]:
    """Make a handler of one request and one answer fit for gRPC."""

    @wraps(handler)
    async def answer(self: S, request: Q, context: ServicerContext[Q, R]) -> R:
        async with _answering(self.gate, handler.__name__, request, context):
            return await handler(self, request)

    return answer


def timed_rpc(
    handler: Callable[[S, Q, float | None], Awaitable[R]],
) -> Callable[[S, Q, ServicerContext[Q, R]], Awaitable[R]]:
    """As `rpc`, for a handler that also takes the seconds that its caller still waits (None: as long as it takes)."""

    @wraps(handler)
    async def answer(self: S, request: Q, context: ServicerContext[Q, R]) -> R:
        async with _answering(self.gate, handler.__name__, request, context):
            return await handler(self, request, context.time_remaining())

    return answer


def rpc_stream(
    handler: Callable[[S, Q], AsyncIterator[R]],
) -> Callable[[S, Q, ServicerContext[Q, R]], AsyncIterator[R]]:
    """Make a handler of one request and a stream of answers fit for gRPC."""

    @wraps(handler)
    async def answer(self: S, request: Q, context: ServicerContext[Q, R]) -> AsyncIterator[R]:
        async with _answering(self.gate, handler.__name__, request, context):
            async for part in handler(self, request):
                yield part

    return answer


@asynccontextmanager
async def _answering(
    gate: Gate, method: str, request: Message | None, context: ServicerContext[Any, Any]
) -> AsyncIterator[None]:
    begun, code = time.monotonic(), ""
    call = asyncio.current_task()
    assert call is not None
    try:
        gate.enter(call)
        _check(request, context)
        yield
        if log.isEnabledFor(logging.DEBUG):
            log.debug(method, extra=fields(**describe(request), seconds=round(time.monotonic() - begun, 4)))
    except asyncio.CancelledError:
        code = StatusCode.CANCELLED.name
        if not gate.expired:
            log.info(f"{_title(method, request)} was given up by its caller", extra=fields(**describe(request)))
            raise
        call.uncancel()
        await _refuse(context, method, request, Draining(_STOPPING))
    except Exception as error:
        code = status_of(error)[0].name
        await _refuse(context, method, request, error)
    finally:
        gate.leave(call)
        gate.ended(method, time.monotonic() - begun, code)


def _check(request: Message | None, context: ServicerContext[Any, Any]) -> None:
    """A call may have waited for the event loop until nobody waits for it any more: then nothing is begun."""
    if request is None:
        raise InvalidRequest("the request is no message of this interface (it cannot be decoded)")
    left = context.time_remaining()
    if left is not None and left <= 0:
        raise DeadlineExceeded("the deadline passed before the call began")


async def _refuse(context: ServicerContext[Any, Any], method: str, request: Message | None, error: Exception) -> None:
    code, message = status_of(error)
    bug = error if is_bug(error) else None
    particulars = fields(**describe(request), error=message, code=code.name)
    log.error(f"{_title(method, request)} failed", extra=particulars, exc_info=bug)
    await context.abort(code, message)


def _title(method: str, request: Message | None) -> str:
    image = describe(request).get("image")
    return f'{method} "{image}"' if image else method

"""One task per key, however many ask for it.

A flight is the work that several callers want at once: a pull, a layer. Whoever comes first starts it, everyone else
joins. The flight belongs to nobody: a caller that is cancelled leaves, the others are served; when the last has left,
the work is cancelled and its end awaited, or goes on for a grace, in which the next caller may board it. An error
reaches everyone who is aboard; the next caller starts anew.

A round is the opposite: it is joined only before it begins, by those who must not get an old answer.

Decisions are made between awaits, on the event loop; there is no lock.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    riders: int = 0
    grace: asyncio.TimerHandle | None = None


class Flights(Generic[K, T]):
    """Work in progress, by key."""

    def __init__(self, grace_seconds: float = 0.0) -> None:
        """Let work go on for *grace_seconds* after its last caller has left."""
        self._grace_seconds = grace_seconds
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def join(self, key: K, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """Return what *work* returns, run once for all who ask for *key* while it runs."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work(), name=f"flight {key}"))
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        if flight.grace is not None:
            flight.grace.cancel()
            flight.grace = None
        flight.riders += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.riders -= 1
            if flight.riders == 0 and not flight.task.done():
                await self._forsake(key, flight)

    async def close(self) -> None:
        """Cancel what is still going on, and wait for its end."""
        tasks = [flight.task for flight in self._flights.values()]
        for key, flight in tuple(self._flights.items()):
            self._give_up(key, flight)
        if tasks:
            await asyncio.wait(tasks)

    async def _forsake(self, key: K, flight: _Flight[T]) -> None:
        if self._grace_seconds > 0:
            loop = asyncio.get_running_loop()
            flight.grace = loop.call_later(self._grace_seconds, self._give_up, key, flight)
            return
        self._give_up(key, flight)
        await asyncio.wait([flight.task])

    def _give_up(self, key: K, flight: _Flight[T]) -> None:
        self._land(key, flight)  # a newcomer must not board a flight that is being cancelled
        flight.task.cancel()

    def _landed(self, key: K, flight: _Flight[T]) -> None:
        self._land(key, flight)
        if flight.grace is not None:
            flight.grace.cancel()
        if not flight.task.cancelled() and (error := flight.task.exception()) is not None and not flight.riders:
            _log.warning("nobody waits any more for what failed: %s", error)

    def _land(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


@dataclass(eq=False, slots=True)
class _Round(Generic[T]):
    answer: asyncio.Task[T]
    begun: bool = False


class Rounds(Generic[K, T]):
    """One answer for all who ask at about the same time, and never one begun before the question.

    A flight may be joined at any time; a round only until it begins, because what is looked up may have changed since.
    Whoever comes first is answered at once, the next round begins *pause_seconds* after the last has ended: so a
    thousand questions cost a handful of answers. A round is not cancelled; its work must be short.
    """

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._last: dict[K, _Round[T]] = {}

    def __len__(self) -> int:
        return len(self._last)

    async def join(self, key: K, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """Return what *work* returns, begun after this call; whoever comes before it begins shares it."""
        last = self._last.get(key)
        if last is None or last.begun:
            last = self._last[key] = self._new(key, last, work)
        return await asyncio.shield(last.answer)

    def _new(self, key: K, before: _Round[T] | None, work: Callable[[], Coroutine[object, object, T]]) -> _Round[T]:
        async def answer() -> T:
            if before is not None:
                await asyncio.wait([before.answer])
                await asyncio.sleep(self._pause_seconds)
            mine.begun = True
            try:
                return await work()
            finally:
                asyncio.get_running_loop().call_later(self._pause_seconds, self._end, key, mine)

        mine = _Round(asyncio.create_task(answer(), name="round"))
        mine.answer.add_done_callback(_noticed)
        return mine

    def _end(self, key: K, ended: _Round[T]) -> None:
        if self._last.get(key) is ended:
            del self._last[key]


def _noticed(task: asyncio.Task[T]) -> None:
    """Whoever asked may be gone: what went wrong is then no news to anyone."""
    if not task.cancelled():
        task.exception()


async def all_of(works: Iterable[Awaitable[T]]) -> list[T]:
    """Run *works* side by side; the first error cancels the rest and is raised itself, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaited(work)) for work in works]
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None
    return [task.result() for task in tasks]


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single error in a group of groups."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _awaited(work: Awaitable[T]) -> T:
    return await work

"""One task per key, however many ask for it.

A flight is the work that several callers want at once: a pull, a layer. Whoever comes first starts it, everyone else
joins. The flight belongs to nobody: a caller that is cancelled leaves, the others are served; when the last has left,
the work is cancelled and its end awaited. An error reaches everyone who is aboard; the next caller starts anew.

Decisions are made between awaits, on the event loop; there is no lock.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    riders: int = 0


class Flights(Generic[K, T]):
    """Work in progress, by key."""

    def __init__(self) -> None:
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
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.riders += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.riders -= 1
            if flight.riders == 0 and not flight.task.done():
                self._land(key, flight)  # a newcomer must not board a flight that is being cancelled
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _land(self, key: K, flight: _Flight[T] | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


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

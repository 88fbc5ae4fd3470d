"""One piece of work per key among threads, however many of them want it.

The first to come does the work in its own thread; who comes meanwhile waits and gets the same result. Work that can
fail in a known way gives a value for it: an exception reaches everybody who waits as the same object.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


class ThreadFlights(Generic[K, T]):
    """Work in progress, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[K, Future[T]] = {}

    def join(self, key: K, work: Callable[[], T]) -> T:
        """Do *work*, or wait for the thread that does it for *key* already."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                mine = self._flights[key] = Future()
        return flight.result() if flight is not None else self._lead(key, mine, work)

    def _lead(self, key: K, flight: Future[T], work: Callable[[], T]) -> T:
        try:
            result = work()
        except BaseException as error:
            self._land(key)
            flight.set_exception(error)
            raise
        self._land(key)
        flight.set_result(result)
        return result

    def _land(self, key: K) -> None:
        with self._lock:
            del self._flights[key]

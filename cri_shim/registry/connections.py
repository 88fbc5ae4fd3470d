"""How many connections carry blobs, to one host and in all, and what comes through them.

A download always has its first one, however many there are: those are bounded where downloads are. What is bounded
here are the further ones for the same blob.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_PER_BLOB: Final = 32
"""Whatever is configured: the map of what has arrived holds no more holes than twice as many."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Connections at once: for one blob, to one host, in all."""

    per_blob: int = 6
    per_host: int = 12
    total: int = 24


class Connections:
    """See the module. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._received: Counter[str] = Counter()

    @contextmanager
    def first(self, host: str) -> Iterator[None]:
        """Have the connection to *host* that every download has."""
        with self._lock:
            self._open[host] += 1
        try:
            yield
        finally:
            self.close(host)

    def another(self, host: str, bounds: Bounds) -> bool:
        """Have one more to *host*, until `close`, if there may be one."""
        with self._lock:
            free = self._open[host] < bounds.per_host and self._open.total() < bounds.total
            if free:
                self._open[host] += 1
            return free

    def close(self, host: str) -> None:
        """Have one less."""
        with self._lock:
            self._open[host] -= 1
            if self._open[host] <= 0:
                # Who compares begins anew, too.
                del self._open[host], self._received[host]

    def open_to(self, host: str) -> int:
        """Return how many there are to *host*."""
        with self._lock:
            return self._open.get(host, 0)

    def count(self, host: str, size_bytes: int) -> None:
        """Note that so many bytes of blobs have come from *host*."""
        with self._lock:
            self._received[host] += size_bytes

    def received_bytes(self, host: str) -> int:
        """Return how many have come from *host* since there were connections to it."""
        with self._lock:
            return self._received.get(host, 0)

"""How many connections carry blobs, to one host and in all, and what comes through them.

A download always has its first one, however many there are: those are bounded where downloads are. What is bounded
here are the further ones for the same blob. An image may have as many of them as there are; when another one wants some
and there are none, those that the first has beyond its share, by weight, become free with what they are at.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.registry.wire import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cri_shim.registry.flow import Flow

MOST_PER_BLOB: Final = 32
"""Whatever is configured: the map of what has arrived holds no more holes than twice as many."""

WANTED_SECONDS: Final = 5.0
"""How long who did not get another one is held to want it still: it asks again sooner, when more is worth trying."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Connections at once: for one blob, to one host, in all."""

    per_blob: int = 6
    per_host: int = 12
    total: int = 24


class Connections:
    """See the module. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: Counter[tuple[Flow, str]] = Counter()
        self._wanting: dict[tuple[Flow, str], float] = {}  # until when
        self._received: Counter[str] = Counter()

    @contextmanager
    def first(self, host: str, flow: Flow) -> Iterator[None]:
        """Have the connection to *host* that every download has."""
        with self._lock:
            self._open[flow, host] += 1
        try:
            yield
        finally:
            self.close(host, flow)

    def another(self, host: str, bounds: Bounds, flow: Flow) -> bool:
        """Have one more to *host* for *flow*, until `close`, if there may be one."""
        with self._lock:
            free = self._held(host=host) < bounds.per_host and self._held() < bounds.total
            if free and not self._is_others(host, bounds, flow, 1):
                self._open[flow, host] += 1
                self._wanting.pop((flow, host), None)
                return True
            self._wanting[flow, host] = self._clock() + WANTED_SECONDS
            return False

    def must_yield(self, host: str, bounds: Bounds, flow: Flow) -> bool:
        """Tell whether one that *flow* has to *host* is due to another, which wants it and has less than its share."""
        with self._lock:
            return self._is_others(host, bounds, flow, 0)

    def close(self, host: str, flow: Flow) -> None:
        """Have one less."""
        with self._lock:
            self._open[flow, host] -= 1
            if self._open[flow, host] <= 0:
                del self._open[flow, host]
                self._wanting.pop((flow, host), None)
            if not self._held(host=host):
                del self._received[host]  # who compares begins anew, too

    def open_to(self, host: str) -> int:
        """Return how many there are to *host*."""
        with self._lock:
            return self._held(host=host)

    def _held(self, flow: Flow | None = None, host: str = "") -> int:
        """Return how many there are, of *flow* alone or to *host* alone where they are given."""
        fitting = (count for (one, to), count in self._open.items() if flow in (None, one) and host in ("", to))
        return sum(fitting)

    def _is_others(self, host: str, bounds: Bounds, flow: Flow, more: int) -> bool:
        """Tell whether *flow*, with so many *more* to *host*, has what is due to one that wants it."""
        now = self._clock()
        wanting = [(one, to) for (one, to), until in self._wanting.items() if until > now and one is not flow]
        here = any(self._is_short(one, host, bounds.per_host) for one, to in wanting if to == host)
        if here and self._held(host=host) + more >= bounds.per_host:
            return self._held(flow, host) + more > self._share(flow, host, bounds.per_host)
        anywhere = any(self._is_short(one, "", bounds.total) for one, _ in wanting)
        if anywhere and self._held() + more >= bounds.total:
            return self._held(flow) + more > self._share(flow, "", bounds.total)
        return False

    def _is_short(self, flow: Flow, host: str, most: int) -> bool:
        return self._held(flow, host) < self._share(flow, host, most)

    def _share(self, flow: Flow, host: str, most: int) -> int:
        """Return how many of *most* are due to *flow*, by its weight among those that have any."""
        flows = {one for one, to in self._open if host in ("", to)} | {flow}
        return max(1, most * flow.weight // sum(one.weight for one in flows))

    def count(self, host: str, size_bytes: int) -> None:
        """Note that so many bytes of blobs have come from *host*."""
        with self._lock:
            self._received[host] += size_bytes

    def received_bytes(self, host: str) -> int:
        """Return how many have come from *host* since there were connections to it."""
        with self._lock:
            return self._received.get(host, 0)

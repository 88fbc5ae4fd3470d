"""How many connections one blob is worth: one more is kept when more comes with it, and else given up.

One connection fills most links. Where each is held to a rate (object stores, gateways, long ways with small windows),
several are faster; where none is, they only take from others. So it is tried: the number is doubled, and what comes
from the host in a while is compared with what came before.
"""

from __future__ import annotations

import threading
from typing import Final

LEAST_BLOB_BYTES: Final = 64 << 20
"""A smaller blob is fetched with one connection."""

SETTLING_SECONDS: Final = 0.5
"""How long new connections may take to get up to speed, before it is looked at what they bring."""

MEASURED_SECONDS: Final = 0.5
"""For how long it is counted."""

WORTH: Final = 0.25
"""What more connections must bring, as a part of what they would bring if each were as fast as those before."""

REST_SECONDS: Final = 2.0
"""When so little time is left at the present rate, no more are tried."""

FAST_BYTES_PER_SECOND: Final = 250e6
"""What comes faster than layers are unpacked needs no second connection."""

REST_AFTER_FAILURE_SECONDS: Final = 30.0
"""How long there is one connection after any of several has failed."""

MOST_FAILURES: Final = 3
"""After so many failures there is one for the rest of the blob."""


class Growth:
    """The number for one blob. Safe from any thread; every time is in seconds of one monotonic clock."""

    def __init__(self, most: int) -> None:
        """Begin with one, and never want more than *most*."""
        self.count = 1
        self._most = most
        self._lock = threading.Lock()
        self._ready_at = 0.0
        self._since: tuple[float, int] | None = None
        self._before: tuple[int, float] | None = None  # how many there were, and what they brought
        self._settled = most <= 1
        self.failures = 0

    def look(self, now: float, received_bytes: int, rest_bytes: int, running: int) -> int:
        """Return how many there should be, at *now*.

        *received_bytes* have come from the host in all, *rest_bytes* of the blob are missing, *running* connections
        work on it.
        """
        with self._lock:
            if self._settled or now < self._ready_at:
                return self.count
            if self._since is None:
                self._since = (now, received_bytes)
            seconds = now - self._since[0]
            if seconds >= MEASURED_SECONDS:
                self._decide((received_bytes - self._since[1]) / seconds, rest_bytes, running)
                self._since, self._ready_at = None, now + SETTLING_SECONDS
            return self.count

    def failed(self, now: float) -> None:
        """Go back to one for a while."""
        with self._lock:
            self.failures += 1
            self.count, self._before, self._since = 1, None, None
            self._settled = self._most <= 1 or self.failures >= MOST_FAILURES
            self._ready_at = now + REST_AFTER_FAILURE_SECONDS

    def stop(self) -> None:
        """Go back to one for good."""
        with self._lock:
            self.count, self._most, self._settled = 1, 1, True

    def _decide(self, rate: float, rest_bytes: int, running: int) -> None:
        if running < self.count:  # more were not to be had, or did not come
            self.count, self._before = max(1, running), None
        elif self._before is not None and rate < _worthwhile(*self._before, self.count):
            self.count, self._settled = self._before[0], True
            return
        self._settled = self.count >= self._most or rate >= FAST_BYTES_PER_SECOND
        if not self._settled and rest_bytes >= rate * REST_SECONDS:
            self._before = (self.count, rate)
            self.count = min(self._most, self.count * 2)


def _worthwhile(before: int, rate: float, now: int) -> float:
    return rate * (1 + WORTH * (now / before - 1))

"""When to ask again: jittered pauses, `Retry-After`, and one clock for each host.

A host that answered 429 is left alone by everyone until its time is over, whichever pull it was that heard it. Pauses
are bounded whatever the host says, and a pull whose deadline would come first fails at once, with the host's answer.
"""

from __future__ import annotations

import email.utils
import random
import re
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.registry.cancel import Cancel

T = TypeVar("T")
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
LONGEST_ORDER_SECONDS = 60.0  # whatever Retry-After says
HOSTS = 1024


def retry_after(value: str, now: float) -> float | None:
    """Return how many seconds a `Retry-After` (RFC 9110, 10.2.3) asks for, at most 60; None where it asks nothing.

    *now* is the time of day in seconds, for the date form. Zero, the past and garbage ask nothing: they must not make
    a busy loop.
    """
    if re.fullmatch(r"[0-9]{1,19}", value):
        seconds = float(int(value))
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(seconds, LONGEST_ORDER_SECONDS) if seconds > 0 else None


def pause_seconds(attempt: int, chance: float) -> float:
    """Return the pause after failed *attempt* (0 the first): doubled each time, and half of it left to *chance*."""
    whole: float = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 16))
    return whole * (0.5 + 0.5 * chance)


class Pace:
    """The clocks of all hosts. Safe from any thread; *sleep* must end when its `Cancel` does."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float, Cancel], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self.wall = wall
        self._sleep = sleep or (lambda seconds, cancel: cancel.wait(seconds))
        self._chance = chance
        self._lock = threading.Lock()
        self._until: OrderedDict[str, float] = OrderedDict()

    def patiently(
        self,
        host: str,
        cancel: Cancel,
        act: Callable[[], T],
        attempts: int = ATTEMPTS,
        most_seconds: float | None = None,
    ) -> T:
        """Do *act* until it does not fail in a way that may pass, at most *attempts* times.

        No pause is longer than *most_seconds*: a host that asks for more is given up, as another one can be asked.

        Raises:
            HostFailed: The last failure.
            Cancelled: While waiting.
        """
        for attempt in range(attempts):
            self.await_turn(host, cancel, most_seconds)
            try:
                return act()
            except HostFailed as failure:
                self.heard(host, failure)
                if not failure.again or attempt + 1 == attempts:
                    raise
                self.rest(host, failure, attempt, cancel, most_seconds)
        raise AssertionError("no attempt was allowed")

    def await_turn(self, host: str, cancel: Cancel, most_seconds: float | None = None) -> None:
        """Wait until *host* may be asked.

        Raises:
            HostFailed: That takes longer than *most_seconds*, or than the pull may.
        """
        cancel.check()
        # Whoever had asked before may hear only now that it is to be left alone for longer.
        while (seconds := self._closed_seconds(host)) > 0:
            if _too_long(seconds, cancel, most_seconds):
                raise HostFailed(f"{host} asked to be left alone for longer than can be waited for it", "status")
            # Those who wait for one host do not all come back in the same instant.
            self._sleep(seconds + min(1.0, seconds / 10) * self._chance(), cancel)

    def heard(self, host: str, failure: HostFailed) -> None:
        """Have everyone leave *host* alone for as long as it asked in *failure*, whatever becomes of who heard it."""
        if failure.busy and failure.after_seconds:
            self._hold(host, failure.after_seconds)

    def rest(
        self, host: str, failure: HostFailed, attempt: int, cancel: Cancel, most_seconds: float | None = None
    ) -> None:
        """Pause after *failure*.

        Raises:
            HostFailed: *failure*, when the deadline would pass first, or the pause is longer than *most_seconds*.
        """
        seconds = failure.after_seconds or pause_seconds(attempt, self._chance())
        if failure.busy and most_seconds is not None and seconds > most_seconds:
            self._hold(host, seconds)
        if _too_long(seconds, cancel, most_seconds):
            raise failure
        if failure.busy:
            self._hold(host, seconds)
        else:
            self._sleep(seconds, cancel)

    def hold(self, host: str, failure: HostFailed) -> None:
        """Have everyone leave *host* alone after a *failure* that says that it is busy; nobody waits here."""
        self._hold(host, failure.after_seconds or pause_seconds(0, self._chance()))

    def _closed_seconds(self, host: str) -> float:
        with self._lock:
            return self._until.get(host, 0.0) - self._clock()

    def _hold(self, host: str, seconds: float) -> None:
        with self._lock:
            self._until[host] = max(self._until.get(host, 0.0), self._clock() + seconds)
            self._until.move_to_end(host)
            while len(self._until) > HOSTS:
                self._until.popitem(last=False)


def _too_long(seconds: float, cancel: Cancel, most_seconds: float | None) -> bool:
    remaining = cancel.remaining_seconds()
    return (remaining is not None and seconds >= remaining) or (most_seconds is not None and seconds > most_seconds)

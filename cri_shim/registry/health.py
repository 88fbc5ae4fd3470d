"""Which hosts have failed lately, so that a dead mirror costs one pull its patience and not every pull.

Only hosts for which there is another are left out, and only while that other one answers: a host that was left out is
asked after all when the rest cannot be reached. After its time one caller tries a host again; until that try has
succeeded the others keep leaving it out.

What is left out is a host, or one registry of those that a mirror stands for: a mirror that passes questions on answers
badly for a registry that does not answer, or that does not exist, and well for the others. So whoever asks names both,
and whoever saw a failure names the one that failed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_SECONDS = 15.0
LONGEST_SECONDS = 300.0
HOSTS = 1024


@dataclass(frozen=True, slots=True)
class _Failing:
    """Left out until then, for that many seconds; *trying* when somebody was sent to see."""

    until: float
    seconds: float
    trying: bool = False


class Health:
    """What is known of all hosts, on the monotonic clock. Safe from any thread; the oldest are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: OrderedDict[str, _Failing] = OrderedDict()

    def may_ask(self, *hosts: str) -> bool:
        """Tell whether none of *hosts* is left out; of several who ask when their time is over, one is told yes."""
        with self._lock:
            found = [(host, self._failing[host]) for host in hosts if host in self._failing]
            if any(self._clock() < failing.until for _, failing in found):
                return False
            for host, failing in found:
                self._failing[host] = _Failing(self._clock() + failing.seconds, failing.seconds, trying=True)
            return True

    def left_out_seconds(self, *hosts: str) -> float:
        """Return for how long one of *hosts* will still be left out, 0 when none is."""
        with self._lock:
            until = [self._failing[host].until for host in hosts if host in self._failing]
            return max(0.0, max(until, default=0.0) - self._clock())

    def failed(self, host: str) -> None:
        """Leave *host* out for a while: 15 s, and twice as long after each further failure, at most 5 minutes."""
        with self._lock:
            before = self._failing.get(host)
            if before is not None and not before.trying:
                return  # one of many that were under way when it began to fail
            seconds = FIRST_SECONDS if before is None else min(LONGEST_SECONDS, before.seconds * 2)
            self._failing[host] = _Failing(self._clock() + seconds, seconds)
            self._failing.move_to_end(host)
            while len(self._failing) > HOSTS:
                self._failing.popitem(last=False)

    def worked(self, *hosts: str) -> None:
        """Ask *hosts* in their turn again."""
        with self._lock:
            for host in hosts:
                self._failing.pop(host, None)

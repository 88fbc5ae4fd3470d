"""Which hosts have failed lately, so that a dead mirror costs one pull its patience and not every pull.

Only hosts for which there is another are left out, and only while that other one answers: a host that was left out is
asked after all when the rest cannot be reached. After its time one caller tries a host again; until that try has
succeeded the others keep leaving it out.
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

    def may_ask(self, host: str) -> bool:
        """Tell whether *host* is to be asked in its turn; of several who ask when its time is over, one is told yes."""
        with self._lock:
            failing = self._failing.get(host)
            if failing is None:
                return True
            if self._clock() < failing.until:
                return False
            self._failing[host] = _Failing(self._clock() + failing.seconds, failing.seconds, trying=True)
            return True

    def left_out_seconds(self, host: str) -> float:
        """Return for how long *host* will still be left out, 0 when it is not."""
        with self._lock:
            failing = self._failing.get(host)
            return 0.0 if failing is None else max(0.0, failing.until - self._clock())

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

    def worked(self, host: str) -> None:
        """Ask *host* in its turn again."""
        with self._lock:
            self._failing.pop(host, None)

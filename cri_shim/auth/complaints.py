"""WARNINGs that are not said again at every pull."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

AGAIN_SECONDS: Final = 300.0
"""After how long the same complaint is made again."""
REMEMBERED: Final = 1024
"""How many things at most are complained about without repeating it."""


class Complaints:
    """What was complained about lately: about each thing one reason at a time. Safe from any thread."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._said: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def say(self, about: str, reason: str) -> None:
        """Log a WARNING, unless it was the last that was said of *about* and that is not long ago."""
        now = self._clock()
        with self._lock:
            before, since = self._said.get(about, ("", now))
            if before == reason and now - since < AGAIN_SECONDS:
                return
            self._said[about] = (reason, now)
            self._said.move_to_end(about)
            while len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
        self._log.warning("%s %s", about, reason)

    def withdraw(self, about: str) -> None:
        """Forget the complaint: it works again, and the next failure is news."""
        with self._lock:
            self._said.pop(about, None)

"""Giving up: a flag that other threads set, and what has to happen at once when they do.

A worker thread that reads from a socket, waits for a name or sleeps between two attempts cannot look at a flag. So it
registers an act (shut the socket down) for as long as it is busy, and sleeps on the flag itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from cri_shim.errors import Cancelled
from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancel:
    """One pull's wish to stop; made by the caller, passed down, safe from any thread."""

    def __init__(self, deadline: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """*deadline* is a time of *clock*, in seconds; after it everything is cancelled."""
        self._deadline = deadline
        self._clock = clock
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._acts: dict[object, Callable[[], None]] = {}
        self._progress_seconds: float | None = None
        self._progress_clock = clock
        self._stuck_at = 0.0
        self._pauses = 0
        self._paused_at = 0.0

    def cancel(self) -> None:
        """Stop whatever is under way; idempotent."""
        with self._lock:
            self._event.set()
            acts = tuple(self._acts.values())
        for act in acts:
            act()

    def expect_progress(self, seconds: float, clock: Callable[[], float]) -> None:
        """From now on `moved` must be called at least every *seconds* of *clock*, or what is under way has failed."""
        self._progress_seconds, self._progress_clock = seconds, clock
        self.moved()

    def moved(self) -> None:
        """Note that something has come that counts."""
        if self._progress_seconds is not None:
            with self._lock:
                self._paused_at = self._progress_clock()
                self._stuck_at = self._paused_at + self._progress_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While anybody is inside, nothing is expected to come: it is us who let nothing come."""
        with self._lock:
            if self._pauses == 0:
                self._paused_at = self._progress_clock()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if self._pauses == 0:
                    self._stuck_at += self._progress_clock() - self._paused_at

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled or the deadline has passed."""
        return self._event.is_set() or (self._deadline is not None and self._deadline <= self._clock())

    def remaining_seconds(self) -> float | None:
        """Return the time until there is no use in going on: the deadline, or too long without progress."""
        ends = () if self._deadline is None else (self._deadline - self._clock(),)
        if self._progress_seconds is not None and not self._pauses:
            ends = (*ends, self._stuck_at - self._progress_clock())
        return min(ends, default=None)

    def check(self) -> None:
        """Go on or raise.

        Raises:
            Cancelled: It was cancelled or the deadline has passed.
            HostFailed: There was no progress for too long.
        """
        if self._event.is_set():
            raise Cancelled("the pull was cancelled")
        if self.cancelled:
            raise Cancelled("the deadline of the pull has passed")
        if self._progress_seconds is None or self._pauses:
            return
        if self._stuck_at <= self._progress_clock():
            raise HostFailed(f"no progress in {self._progress_seconds:g} s, whoever was asked", "stalled")

    def wait(self, seconds: float) -> None:
        """Sleep, or less when cancelled.

        Raises:
            Cancelled: It was cancelled, or the deadline passed, meanwhile.
        """
        remaining = self.remaining_seconds()
        self._event.wait(max(0.0, seconds if remaining is None else min(seconds, remaining)))
        self.check()

    @contextlib.contextmanager
    def doing(self, act: Callable[[], None]) -> Iterator[None]:
        """While inside, `cancel` calls *act* in its own thread; *act* must be quick and raise nothing.

        Raises:
            Cancelled: It was cancelled before.
        """
        key = object()
        with self._lock:
            self._acts[key] = act
        try:
            self.check()
            yield
        finally:
            with self._lock:
                del self._acts[key]


class Branch(Cancel):
    """A part of what a `Cancel` covers, which can be stopped alone; progress is that of the whole."""

    def __init__(self, whole: Cancel) -> None:
        super().__init__()
        self._whole = whole

    @property
    def cancelled(self) -> bool:
        """Whether the part or the whole is."""
        return super().cancelled or self._whole.cancelled

    def expect_progress(self, seconds: float, clock: Callable[[], float]) -> None:
        """See `Cancel`: of the whole."""
        self._whole.expect_progress(seconds, clock)

    def moved(self) -> None:
        """See `Cancel`: the whole has moved."""
        self._whole.moved()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See `Cancel`: of the whole."""
        with self._whole.paused():
            yield

    def remaining_seconds(self) -> float | None:
        """Return the time that is left to the whole."""
        return self._whole.remaining_seconds()

    def check(self) -> None:
        """See `Cancel`."""
        self._whole.check()
        super().check()

"""The look at everything that is made in the background once in a while, and goes on after a restart where it was.

The first one falls on a random moment of the first period, so that the nodes of a cluster do not read their disks all
at once. Times are of the wall clock, as they outlive a boot; one that is further away than a period is none.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ShimError
from cri_shim.executor import in_thread
from cri_shim.images.report import Report
from cri_shim.store.due import Due, read_due, write_due
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri_shim.images.scrub import Scrub

TICK_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Period:
    """How often it is looked, in seconds (0: never), at how many bytes per second, and whether it is repaired."""

    seconds: float
    bytes_per_second: int
    repair: bool


class Rounds:
    """The looks of one root, whose *path* remembers where they are."""

    def __init__(self, scrub: Scrub, path: Path, period: Period, now: Callable[[], float] = time.time) -> None:
        self._scrub = scrub
        self._path = path
        self._period = period
        self._now = now
        self._place = Due(0.0)

    async def forever(self, tick_seconds: float = TICK_SECONDS) -> None:
        """Look when it is time, and throw away what was replaced as soon as nobody has it mounted."""
        self._place = await in_thread(self._read)
        while True:
            try:
                await self._scrub.bury()
                await self.look_if_due()
            except (ShimError, RootfsError, OSError) as error:
                _log.error("the check in the background failed, and is tried again: %s", error)
            await asyncio.sleep(tick_seconds)

    async def look_if_due(self) -> None:
        """Make the look that is due, or is under way; nothing when there is none.

        Raises:
            OSError: it cannot be remembered where it is.
        """
        if not self._period.seconds or not (self._place.after or self._now() >= self._place.due_s):
            return
        report = Report(content=True)
        manner = self._scrub.in_background(self._period.bytes_per_second)
        repair, after = self._period.repair, self._place.after
        self._scrub.background = report
        await self._scrub.look(report, manner, self._reached, repair=repair, after=after)
        await self._keep(Due(self._now() + self._period.seconds))
        _log.info("checked %d things in %.0f s, %d damaged", report.things, report.seconds, len(report.layers))

    async def _reached(self, after: str) -> None:
        await self._keep(replace(self._place, after=after))

    async def _keep(self, place: Due) -> None:
        self._place = place
        await in_thread(write_due, self._path, place)

    def _read(self) -> Due:
        place = read_due(self._path)
        if place is not None and place.due_s <= self._now() + self._period.seconds:
            return place
        place = Due(self._now() + random.uniform(0.0, self._period.seconds))  # noqa: S311 (no secret)
        if self._period.seconds:
            with suppress(OSError):
                write_due(self._path, place)
        return place

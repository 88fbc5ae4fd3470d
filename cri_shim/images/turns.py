"""So many downloads at once, handed out to images by weight.

A place that becomes free goes to the image that has the fewest for its weight, of several to the one that has waited
longest: an image with one layer is not behind all those of an image with fifty. The last place is kept for an image
that has none, so that who comes while large layers are fetched need not wait for their end.

Everything happens on the event loop, between awaits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cri_shim.registry.flow import Flow, Payers


@dataclass(eq=False, slots=True)
class _Waiting:
    payers: Payers
    seat: asyncio.Future[Flow]


class Turns:
    """At most *most* at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[Flow] = Counter()
        self._waiting: list[_Waiting] = []

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, payers: Payers) -> AsyncIterator[None]:
        """Wait for a place for the heaviest of *payers*, and have it while inside."""
        flow = await self._taken_by(payers)
        try:
            yield
        finally:
            self._free(flow)

    async def _taken_by(self, payers: Payers) -> Flow:
        mine = _Waiting(payers, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        self._seat()
        try:
            return await mine.seat
        except asyncio.CancelledError:
            if mine in self._waiting:
                self._waiting.remove(mine)
                self._seat()
            elif not mine.seat.cancelled():
                self._free(mine.seat.result())
            raise

    def _free(self, flow: Flow) -> None:
        self._taken[flow] -= 1
        self._taken += Counter()  # drops those that have none
        self._seat()

    def _seat(self) -> None:
        while (mine := self._next()) is not None:
            self._waiting.remove(mine)
            flow = mine.payers.heaviest
            self._taken[flow] += 1
            mine.seat.set_result(flow)

    def _next(self) -> _Waiting | None:
        """Return who has the next place, None while there is none; `min` takes the first of several."""
        left = self._most - self._taken.total()
        if left <= 0:
            return None
        last = left == 1 and self._most > 1
        askers = [(one.payers.heaviest, one) for one in self._waiting if not one.seat.done()]
        allowed = [(flow, one) for flow, one in askers if not last or not self._taken[flow]]
        return min(allowed, key=lambda it: (self._taken[it[0]] + 1) / it[0].weight, default=(None, None))[1]

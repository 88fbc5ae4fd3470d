"""Images that a node is to have before anybody asks: pulled when the daemon starts, tried again until they are here.

The image of sandboxes is the first and goes alone, for without it no pod starts. What is here already costs no question
to a registry: a node whose registry is down starts as it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.images.service import Images

AT_ONCE: Final = 3
FIRST_PAUSE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wanted:
    """One image: how often it was tried, what the last failure was, when the next try is (monotonic)."""

    name: str
    state: str = "waiting"
    tries: int = 0
    failure: str = ""
    next_try: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return what the admin page shows about it."""
        told: dict[str, object] = {"name": self.name, "state": self.state, "tries": self.tries}
        if self.failure:
            told["failure"] = self.failure
            told["next_try_seconds"] = round(max(0.0, self.next_try - time.monotonic()), 1)
        return told


class Prepull:
    """Brings *names* here, the first one alone and before the others where *first_alone* says so."""

    def __init__(self, names: Sequence[str], *, first_alone: bool, longest_pause_seconds: float) -> None:
        self._wanted = tuple(_Wanted(name) for name in dict.fromkeys(names))
        self._first_alone = first_alone
        self._longest_pause_seconds = longest_pause_seconds
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def run(self, images: Images) -> None:
        """Return when every image is here."""
        rest = self._wanted
        if self._first_alone and rest:
            # The others wait for one try, not for success: its registry may be the only one that is down.
            here = await self._tried(rest[0], images)
            rest = rest[1:] if here else (*rest[1:], rest[0])
        async with asyncio.TaskGroup() as group:
            for wanted in rest:
                group.create_task(self._bring(wanted, images), name=f"prepull {wanted.name}")

    def status(self) -> list[dict[str, object]]:
        """Return what the admin page shows about each image."""
        return [wanted.as_json() for wanted in self._wanted]

    async def _bring(self, wanted: _Wanted, images: Images) -> None:
        while True:
            left = wanted.next_try - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            async with self._at_once:
                if await self._tried(wanted, images):
                    return

    async def _tried(self, wanted: _Wanted, images: Images) -> bool:
        wanted.tries += 1
        wanted.state = "pulling"
        try:
            image = await images.usable(wanted.name) or await images.pull(wanted.name, None)
        except Exception as error:  # whatever it is, it is told and tried again
            self._failed(wanted, error)
            return False
        wanted.state, wanted.failure = "here", ""
        _log.info('prepulled "%s": %s', wanted.name, image.id)
        return True

    def _failed(self, wanted: _Wanted, error: Exception) -> None:
        pause = min(self._longest_pause_seconds, FIRST_PAUSE_SECONDS * 2.0 ** min(wanted.tries - 1, 30))
        # Nodes that were started together do not all come at the same moment.
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 (no secret)
        wanted.state, wanted.failure = "failed", str(error) or type(error).__name__
        wanted.next_try = time.monotonic() + pause
        _log.warning('prepull "%s" failed and is tried again in %.0f s: %s', wanted.name, pause, wanted.failure)

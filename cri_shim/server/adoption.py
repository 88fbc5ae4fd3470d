"""`adopt`: what the runtime has pulled itself is taken over once, at the first start, however often that is cut short.

A file in the root says how far it came: `begun` before the first image is taken, `done` when no try is owed any more. A
start that finds `begun` goes on; images that came meanwhile by other ways do not matter to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, TypeVar

from cri_shim.errors import InvalidRequest
from cri_shim.executor import DaemonExecutor
from cri_shim.server.status import is_bug
from cri_shim.store.durable import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cri_shim.images.importing import Adopted
    from cri_shim.images.service import Images

T = TypeVar("T")
MARK: Final = "adoption"
"""The file in the root."""

TRIES: Final = 5
"""How often an image that cannot be taken over is tried; a runtime that cannot be asked is asked for ever."""

FIRST_PAUSE_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 300.0
_LONGEST_MARK_BYTES: Final = 16
_log = logging.getLogger(__name__)


class AdoptAtFirst:
    """Takes over the runtime's own images where *wanted* says so and none is here, or an earlier start began to."""

    def __init__(self, root: Path, *, wanted: bool) -> None:
        self._mark = root / MARK
        self._wanted = wanted
        self._thread = DaemonExecutor("adoption", 1)
        self._state = "waiting" if wanted else "off"
        self._failure = ""
        self._tries = 0
        self._taken = 0
        self._left: dict[str, str] = {}
        self._not_given: dict[str, str] = {}
        self._next_try = 0.0
        self.tried = asyncio.Event()
        """Set after the first try, whatever came of it, or where nothing is to be done."""

    async def run(self, images: Images) -> None:
        """Return when nothing is owed any more; what fails is logged, shown by `status`, and tried again."""
        try:
            if self._wanted and await self._is_due(images):
                await self._until_done(images)
        except InvalidRequest as error:
            self._failed(error)
            await self._in_thread(lambda: self._mark.unlink(missing_ok=True))
        except Exception as error:  # whatever it is: the daemon serves without it
            self._failed(error)
        finally:
            self.tried.set()

    def status(self) -> dict[str, object]:
        """Return what the admin page shows: how it stands, and each image that was left with the reason."""
        left = [{"name": name, "failure": failure} for name, failure in sorted(self._left.items())]
        told: dict[str, object] = {"state": self._state, "taken": self._taken, "left": left, "tries": self._tries}
        if self._state == "failed":
            told["failure"] = self._failure
            told["next_try_seconds"] = round(max(0.0, self._next_try - time.monotonic()), 1)
        return told

    async def _is_due(self, images: Images) -> bool:
        mark = await self._in_thread(self._read)
        if mark != "begun" and (mark == "done" or images.images()):
            self._state = "done"
            return False
        await self._in_thread(lambda: write_durably(self._mark, b"begun"))
        return True

    async def _until_done(self, images: Images) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not await self._try(images):
            self.tried.set()
            self._next_try = time.monotonic() + pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        await self._in_thread(lambda: write_durably(self._mark, b"done"))
        self._state = "done"

    async def _try(self, images: Images) -> bool:
        """Take over what can be; say whether that was all, or the last try."""
        self._state = "running"
        try:
            await self._take(images)
        except InvalidRequest:  # there is no runtime to take them from: no further try will find one
            raise
        except Exception as error:  # it is told, and tried again
            self._failed(error)
            return False
        self._tries += 1
        if self._left and self._tries < TRIES:
            self._state, self._failure = "failed", f"{len(self._left)} images are left, and tried again"
            return False
        for name, failure in self._left.items():
            _log.error("%s is not taken over after %d tries: %s", name, self._tries, failure)
        return True

    async def _take(self, images: Images) -> None:
        taken = await images.adopt()
        left, not_given = _left(taken.images)
        for name, image in self._not_given.items():  # the runtime may have forgotten them before it was given ours
            if name not in left and await images.usable(image) is None:
                left[name], not_given[name] = self._left[name], image
        self._left, self._not_given = left, not_given
        self._taken = len(images.images())

    def _failed(self, error: Exception) -> None:
        self._state, self._failure = "failed", str(error) or type(error).__name__
        _log.error("the runtime's images are not taken over: %s", self._failure, exc_info=is_bug(error))

    def _read(self) -> str:
        try:
            with self._mark.open("rb") as file:
                return file.read(_LONGEST_MARK_BYTES).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return ""

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _left(taken: Iterable[Adopted]) -> tuple[dict[str, str], dict[str, str]]:
    """Return why names are left, and the images of those that are here and were not given back to the runtime."""
    left = {one.name: one.failure for one in taken if one.failure}
    return left, {one.name: str(one.image.id) for one in taken if one.failure and one.image is not None}

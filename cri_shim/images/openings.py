"""What may stand in for a registry that cannot be reached: a credential that opened the name a short while ago.

Off unless the operator sets how long. Then every pull that a registry allowed is noted in the index: the name, what it
stood for, a keyed hash of the credential, the time. When the registry is unreachable, and only then, a caller who shows
that very credential within the time gets the image that is here, if the name still means what it meant then. What
needed no credential was open to everybody and stays so. A registry that says no takes the note back.

Time is the wall clock's, for a restart must not matter. A clock that was set back would make old notes young, so then
all of them are dropped: it is compared with the latest note, and while the daemon runs with a clock that only goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import ShimError
from cri_shim.store.catalog import Opening
from cri_shim.store.key import read_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from cri_shim.auth.credential import Credential
    from cri_shim.oci.reference import Reference
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store
    from rootfs.digest import Digest

MOST_PER_NAME: Final = 64
"""Credentials of which it is noted that they opened one name; the oldest notes go."""
SET_BACK_SECONDS: Final = 10.0
"""A clock that is further back than this was set back; less is what keeping it right may do."""

_AFRESH: Final = 16  # a note is written anew when a sixteenth of its time is over: not for each of many pulls
_log = logging.getLogger(__name__)


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clocks:
    """*wall* can be set; *steady* only goes on, also while the machine sleeps. Both in seconds."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _boot_time


class Openings:
    """Notes what opened what, and tells whether it counts. Every method is called on the event loop."""

    def __init__(self, store: Store, lasting_seconds: int, clocks: Clocks | None = None) -> None:
        """Let a note count for *lasting_seconds*; with 0 nothing is noted and nothing counts."""
        self._store = store
        self._lasting_seconds = lasting_seconds
        self._clocks = clocks or Clocks()
        self._key: asyncio.Task[bytes] | None = None
        self._wall, self._steady = self._clocks.wall(), self._clocks.steady()

    async def note(self, reference: Reference, credential: Credential, digest: Digest) -> None:
        """Record that *credential* opened *reference*, which stands for *digest*; what fails is logged."""
        if not self._lasting_seconds:
            return
        try:
            now = await self._time()
            name = str(reference)
            opening = Opening(name, credential.fingerprint(await self._fingerprint_key()), digest, int(now))
            known = self._store.catalog.openings.get((name, opening.credential))
            fresh = known is not None and known.digest == digest and known.at_s > now - self._lasting_seconds / _AFRESH
            if not fresh and name in self._store.catalog.names:
                await self._store.put_opening(opening, self._outdated(name, now))
        except ShimError as error:
            _log.warning("what opened %s could not be noted: %s", reference, error)

    async def withdraw(self, reference: Reference, credentials: Iterable[Credential]) -> None:
        """Forget that any of *credentials* opened *reference*: the registry has just refused them all."""
        try:
            mine = await self._noted(reference, credentials)
            if mine:
                await self._store.drop_openings(mine)
        except ShimError as error:
            _log.warning("that %s was refused could not be noted: %s", reference, error)

    async def age_seconds(
        self,
        reference: Reference,
        credentials: Iterable[Credential],
        image: Image,
        refused: Collection[Credential] = (),
    ) -> float | None:
        """Tell how long ago one of *credentials* was seen to open *reference* as *image*; None when too long ago.

        Those *refused* just now count for nothing.
        """
        now = await self._time() if self._lasting_seconds else 0.0
        void = await self._noted(reference, refused)
        mine = [one for one in await self._noted(reference, (*credentials, ANONYMOUS)) if one not in void]
        ages = [max(0.0, now - one.at_s) for one in mine if one.digest in (image.target, image.manifest)]
        youngest = min(ages, default=None)
        return youngest if youngest is not None and youngest <= self._lasting_seconds else None

    async def _noted(self, reference: Reference, credentials: Iterable[Credential]) -> tuple[Opening, ...]:
        openings = self._store.catalog.openings
        if not self._lasting_seconds or not openings:
            return ()
        key, name = await self._fingerprint_key(), str(reference)
        prints = {credential.fingerprint(key) for credential in credentials}
        return tuple(openings[name, one] for one in sorted(prints) if (name, one) in openings)

    def _outdated(self, name: str, now: float) -> tuple[Opening, ...]:
        notes = self._store.catalog.openings.values()  # in the order of their time
        old = tuple(takewhile(lambda one: one.at_s < now - self._lasting_seconds, notes))
        mine = sorted(self._store.catalog.openings_of(name), key=lambda one: one.at_s)
        return (*old, *mine[: max(0, len(mine) - MOST_PER_NAME + 1)])

    async def _time(self) -> float:
        """Return the time, which never runs back without everything having been forgotten first."""
        wall, steady = self._clocks.wall(), self._clocks.steady()
        expected = self._wall + (steady - self._steady)
        notes = self._store.catalog.openings
        latest = next(reversed(notes.values())).at_s if notes else 0
        behind = max(expected, latest) - wall
        if behind > SET_BACK_SECONDS:
            self._wall, self._steady = wall, steady
            if notes:
                _log.warning(
                    "the clock was set back by %d s: what opened images before does not count any more", behind
                )
                await self._store.drop_openings(tuple(notes.values()))
            return wall
        if wall > expected:
            self._wall, self._steady = wall, steady
        return max(wall, expected)

    async def _fingerprint_key(self) -> bytes:
        if self._key is None or (self._key.done() and self._key.exception() is not None):
            work = self._store.disk(lambda: read_key(self._store.layout.key))
            self._key = asyncio.create_task(work, name="read the key of the credentials' hashes")
        return await asyncio.shield(self._key)

"""Images are given to runtimes: what a hand-off must be able to do, and who calls it when.

A hand-off (`HandOff`, implemented in `cri_shim.handoff`) makes the images of the store visible to one kind of runtime;
several may be on at once. `Publishing` stands between them and the pulls:

    pull    row of the image → publish → PullImage replies
    remove  retract → row gone → `in_use` → layers into the trash
    start   start → every image that lies here is published anew, in the background

Calls about one image never overlap: they are put in order here, so a hand-off needs no order of its own for one image.
Calls about different images do overlap. A caller that leaves cuts nothing short.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from cri_shim.errors import ShimError
from cri_shim.store.store import undisturbed
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from cri_shim.store.catalog import Catalog
    from cri_shim.store.image import Image
    from rootfs.digest import Digest

VERIFY_SECONDS = 2.0
"""How long ImageStatus waits for a runtime that has to be asked."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
"""How long a renewal pauses before it tries once more what failed."""

STOP_SECONDS = 10.0
"""How long a stop waits for what a renewal has begun."""

_PUBLISHED_AT_ONCE = 8
_log = logging.getLogger(__name__)


class LayerUser(Protocol):
    """Something that may still need the directory of a layer that no image refers to any more."""

    async def in_use(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* (names below `overlay/`) that must stay.

        It is asked before a layer is thrown away, and again later about those that had to stay; what it does not return
        is gone right after. An error counts as "all of them".
        """


class HandOff(LayerUser, Protocol):
    """Gives images to one kind of runtime."""

    @property
    def name(self) -> str:
        """What the configuration calls it: `containers-storage`, `containerd`."""

    async def start(self, renew: Callable[[], None]) -> None:
        """Begin to serve, with the store open and no call served yet.

        A runtime that is down, or starts later, must neither raise nor hold this up: connect in a task of one's own.
        Records of ours whose image the catalog does not have any more go away here, or when the runtime comes.

        Args:
            renew: to be called on the event loop, at any time, when all images have to be published anew (the runtime
                came back, its records were lost). After `start` this is done once without being asked for, unless
                `status` says that the state is `waiting`: for a runtime that has not come yet.

        Raises:
            ConfigError: what is configured cannot work on this node.
        """

    async def stop(self) -> None:
        """End all tasks and connections; images stay published."""

    async def publish(self, image: Image) -> None:
        """Make *image* visible under all its names; when it is already, this must cost little and change nothing.

        A name that another image had until now is taken from that image in the same step where that matters. Time is
        bounded here, and nothing half is visible after a failure.

        Raises:
            HandOffFailed: why the runtime does not see it, with what to do; the pull fails with this sentence.
        """

    async def renamed(self, image: Image) -> None:
        """*image* has lost names to other images, which were published before this call; it may have none left.

        Raises:
            HandOffFailed: why that could not be told; it is logged.
        """

    async def retract(self, image: Image) -> None:
        """Take *image* away from the runtime, before its row and its layers go.

        A runtime that is down must not raise (see `start`); containers that run go on.

        Raises:
            HandOffFailed: the image cannot be taken away, and its layers must stay; the removal fails.
        """

    async def verify(self, image: Image) -> bool:
        """Tell whether the runtime can make a container of *image* now, and repair what is missing, cheaply.

        False: it is known not to have it and could not be given it. A runtime that cannot be asked is no reason for
        False. ImageStatus is waiting: see `VERIFY_SECONDS`.
        """

    def status(self) -> Mapping[str, object]:
        """Return what the admin page shows: at least `state`, a word, and the last failure if it still matters."""


class Publishing:
    """All hand-offs of this node. Every method is called on the event loop."""

    def __init__(
        self, catalog: Callable[[], Catalog], handoffs: Iterable[HandOff], others: Iterable[LayerUser]
    ) -> None:
        """*others* use layers as well, without being given images: mounts."""
        self._catalog = catalog
        self._handoffs = tuple(handoffs)
        self._others = tuple(others)
        self._users: tuple[LayerUser, ...] = (*self._handoffs, *self._others)
        self._busy: dict[Digest, asyncio.Event] = {}
        self._told: set[Digest] = set()
        self._holders: dict[str, Digest] = {}
        self._renewals: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Start the hand-offs, and publish in the background what lies here.

        Raises:
            ConfigError: a hand-off cannot work on this node.
        """
        # Until something else is found out, the runtimes have what an earlier life gave them.
        self._told, self._holders = set(self._catalog().images), dict(self._catalog().names)
        for handoff in self._handoffs:
            await handoff.start(functools.partial(self._renew, handoff))
            if handoff.status()["state"] != "waiting":
                self._renew(handoff)

    async def stop(self) -> None:
        """Stop the hand-offs."""
        renewals = tuple(self._renewals.values())
        for task in renewals:
            task.cancel()
        if renewals:
            _, stuck = await asyncio.wait(renewals, timeout=STOP_SECONDS)
            for task in stuck:
                _log.warning("%s does not end and is left behind", task.get_name())
        for handoff in self._handoffs:
            await handoff.stop()

    async def publish(self, image: Image) -> None:
        """Give *image* to every runtime; one that was removed meanwhile is not given.

        Raises:
            HandOffFailed, ShimError, RootfsError: the first reason why a runtime does not see it.
        """
        if self._handoffs:
            for loser in await undisturbed(self._publish(image.id, self._handoffs)):
                await undisturbed(self._rename(loser))

    async def replace(self, image: Image) -> None:
        """Take *image* from every runtime and give it again at once: what they had of it before was not from here.

        For whoever asks meanwhile they have it.

        Raises:
            HandOffFailed, ShimError, RootfsError: why a runtime does not have it now.
        """
        await undisturbed(self._publish(image.id, self._handoffs, taken_away_first=True))

    async def retract(self, image: Image, then: Callable[[], Awaitable[None]]) -> None:
        """Take *image* from every runtime and then do *then*, the removal of its row, before it can be given again.

        Raises:
            HandOffFailed: a runtime must keep it; *then* was not done.
        """
        await undisturbed(self._retract(image, then))

    async def verify(self, image: Image) -> bool:
        """Tell whether every runtime can use *image* now; what is being worked on is answered from what is known."""
        if not self._handoffs:
            return True
        if image.id in self._busy:
            return image.id in self._told
        asked = asyncio.create_task(self._verify(image.id), name=f"verify {image.id}")
        asked.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # the waiting caller tells it
        await asyncio.wait([asked], timeout=VERIFY_SECONDS)
        if asked.done():
            return asked.result()
        _log.warning("whether the runtime has %s is not known after %.0f s", image.id, VERIFY_SECONDS)
        return True

    async def in_use(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* that a runtime, or a mount, still needs."""
        return await self._used(self._users, layers)

    async def mounted(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* that somebody has mounted now, whatever a runtime's records name."""
        return await self._used(self._others, layers)

    async def _used(self, users: Iterable[LayerUser], layers: frozenset[str]) -> frozenset[str]:
        used: frozenset[str] = frozenset()
        for user in users:
            try:
                used |= await user.in_use(layers)
            except Exception as error:  # whatever it is: a layer that may be in use stays
                _log.error("%d layers stay, as it is not known whether they are in use: %s", len(layers), error)
                return layers
        return used

    def status(self) -> dict[str, object]:
        """Return what the admin socket shows about each hand-off."""
        return {handoff.name: dict(handoff.status()) for handoff in self._handoffs}

    @asynccontextmanager
    async def _turn(self, image: Digest) -> AsyncIterator[None]:
        """Wait until nobody else works on *image*, and keep others away from it."""
        while (busy := self._busy.get(image)) is not None:
            await busy.wait()
        self._busy[image] = asyncio.Event()
        try:
            yield
        finally:
            self._busy.pop(image).set()

    async def _publish(
        self, image_id: Digest, handoffs: tuple[HandOff, ...], *, taken_away_first: bool = False
    ) -> frozenset[Digest]:
        """Publish, and return the images that had one of its names until now."""
        async with self._turn(image_id):
            image = self._catalog().images.get(image_id)
            if image is None:
                return frozenset()
            for handoff in handoffs if taken_away_first else ():
                await handoff.retract(image)
            outcomes = await asyncio.gather(*(one.publish(image) for one in handoffs), return_exceptions=True)
            if failures := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
                self._told.discard(image_id)
                raise failures[0]
            return self._note(image)

    def _note(self, image: Image) -> frozenset[Digest]:
        self._told.add(image.id)
        losers = frozenset(self._holders.get(name, image.id) for name in image.names) - {image.id}
        self._holders.update(dict.fromkeys(image.names, image.id))
        return losers

    async def _rename(self, image_id: Digest) -> None:
        async with self._turn(image_id):
            image = self._catalog().images.get(image_id)
            if image is None:
                return
            for handoff in self._handoffs:
                try:
                    await handoff.renamed(image)
                except (ShimError, RootfsError) as error:
                    _log.error("%s does not know that %s has other names now: %s", handoff.name, image_id, error)

    async def _retract(self, image: Image, then: Callable[[], Awaitable[None]]) -> None:
        async with self._turn(image.id):
            self._told.discard(image.id)
            for name in [name for name in image.names if self._holders.get(name) == image.id]:
                del self._holders[name]
            for handoff in self._handoffs:
                await handoff.retract(image)
            await then()

    async def _verify(self, image_id: Digest) -> bool:
        async with self._turn(image_id):
            image = self._catalog().images.get(image_id)
            if image is None:
                return False
            good = all([await handoff.verify(image) for handoff in self._handoffs])
            if good:
                self._note(image)
            return good

    def _renew(self, handoff: HandOff) -> None:
        """Publish all images to *handoff* in the background, those that fail again; one renewal at a time."""
        running = self._renewals.get(handoff.name)
        task = asyncio.create_task(self._publish_all(handoff, running), name=f"publish all images to {handoff.name}")
        self._renewals[handoff.name] = task

    async def _publish_all(self, handoff: HandOff, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait([before])
        at_once = asyncio.Semaphore(_PUBLISHED_AT_ONCE)

        told: dict[Digest, str] = {}

        async def failed(image_id: Digest) -> bool:
            async with at_once:
                try:
                    await undisturbed(self._publish(image_id, (handoff,)))
                except Exception as error:  # one image must not keep the others back
                    if told.get(image_id) != str(error):
                        _log.error("image %s is not given to %s: %s", image_id, handoff.name, error)
                    told[image_id] = str(error)
                    return True
            return False

        left, pause = tuple(self._catalog().images), FIRST_PAUSE_SECONDS
        while left:
            outcomes = await asyncio.gather(*map(failed, left))
            _log.info("%d of %d images are published to %s", outcomes.count(False), len(left), handoff.name)
            left = tuple(image_id for image_id, bad in zip(left, outcomes, strict=True) if bad)
            if left:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

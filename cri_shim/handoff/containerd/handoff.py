"""containerd and we, in agreement: its records of our images are a part of our state.

Whoever removes an image through containerd is found out by the next `verify`, and what is missing is registered again.
When containerd comes, at our start or after its own, three things happen before images are given: the leases of
publications that were cut short end, so that containerd collects what they left; records of ours whose image is gone
are removed; and all images are registered anew, which costs a question each where nothing is missing.

A containerd that is down keeps nobody waiting longer than `PATIENCE_SECONDS` after it went, and one that hangs makes
ImageStatus wait half a second once in a while: what is not known is answered from what is here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from cri_shim.errors import HandOffFailed, StoreDamaged
from cri_shim.handoff.containerd.client import Client, Unreachable, named, owned
from cri_shim.handoff.containerd.publish import Publisher
from cri_shim.handoff.containerd.records import names_of, targets_of
from cri_shim.images.standing import Tree
from cri_shim.store.store import run_job
from rootfs.digest import chain_ids
from rootfs.errors import RootfsError
from rootfs.graft import Reach

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cri_shim.handoff.containerd.records import Record
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store
    from rootfs.digest import Digest

PATIENCE_SECONDS: Final = 10.0
"""How long after containerd went, or after our start, a publication waits for it."""

PUBLISH_SECONDS: Final = 60.0
"""How long a publication waits for containerd, all its calls together."""

TRUSTED_SECONDS: Final = 1.0
"""How long it is taken for granted that containerd has what it had."""

SILENT_SECONDS: Final = 5.0
"""How long a containerd that did not answer is asked nothing."""

_NO_IMAGE: Final = f"sha256:{'0' * 64}"
_CONTENT: Final = "io.containerd.content.v1.content"
_OWED_SECONDS: Final = 30.0
_ASK_SECONDS: Final = 0.5
_REMOVE_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


class Containerd:
    """A `HandOff` (cri_shim.images.publishing) to the containerd at *socket*, whose data lie under *runtime_root*."""

    name = "containerd"

    def __init__(self, socket: str, runtime_root: str, store: Store, sync: str) -> None:
        self._socket = socket
        self._runtime_root = runtime_root
        self._store = store
        self._sync = sync
        self._arrived = asyncio.Event()
        self._gone_at = 0.0
        self._verified: dict[Digest, tuple[Image, float]] = {}
        self._silent_until = 0.0
        self._version = ""
        self._reach = Reach("", "not tried yet")
        self._failure = ""
        self._owed: set[Digest] = set()
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def start(self, renew: Callable[[], None]) -> None:
        """Begin to connect; see `HandOff.start`."""
        self._client = Client(self._socket)
        self._publisher = Publisher(self._client, self._store, self._runtime_root, self._sync)
        self._gone_at = asyncio.get_running_loop().time()
        self._tasks = (
            asyncio.create_task(self._watch(renew), name="watch containerd"),
            asyncio.create_task(self._pay(), name="remove later from containerd"),
        )

    @property
    def content(self) -> str:
        """Where its content store lies."""
        return f"{self._runtime_root}/{_CONTENT}"

    async def arrival(self) -> None:
        """Wait until containerd is connected, as long as that may take."""
        await self._arrived.wait()

    async def foreign(self) -> tuple[Record, ...]:
        """Return the records of containerd that are not ours.

        Raises:
            HandOffFailed: it cannot be asked.
        """
        ours = {record.name for record in await self._client.records([owned(*self._publisher.owner)])}
        return tuple(record for record in await self._client.records(()) if record.name not in ours)

    async def trees(self, diff_ids: tuple[Digest, ...]) -> dict[Digest, Tree]:
        """Return where containerd has the layers of an image unpacked; nothing where it has not."""
        if not diff_ids:
            return {}
        try:
            found = await self._publisher.directories(str(chain_ids(diff_ids)[-1]))
        except HandOffFailed as error:
            _log.warning("where containerd has its layers is not known, they are unpacked anew: %s", error)
            return {}
        if len(found) != len(diff_ids):
            return {}
        return {diff_id: Tree(directory) for diff_id, directory in zip(diff_ids, found, strict=True)}

    async def stop(self) -> None:
        """End the connection; images stay registered."""
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await self._client.close()

    async def publish(self, image: Image) -> None:
        """Register *image*, or find that it is registered.

        Raises:
            HandOffFailed: containerd does not have it, and why.
        """
        async with self._limit() as limit:
            await self._reachable()
            try:
                await self._publish(image, limit)
            except Unreachable:  # it was restarted just now: once more
                await self._reachable()
                await self._publish(image, limit)

    async def renamed(self, image: Image) -> None:
        """Nothing is to be done: a name that moved was moved with the image that has it now."""

    async def retract(self, image: Image) -> None:
        """Remove every record of *image* and wait until containerd has collected what they held.

        A containerd that is down loses them when it comes back, one that does not answer a little later.

        Raises:
            HandOffFailed: it refused.
        """
        self._verified.pop(image.id, None)
        if not self._arrived.is_set():
            self._owed.add(image.id)
            return
        try:
            async with asyncio.timeout(_REMOVE_SECONDS):
                await self._drop(await self._names_to_remove(image))
        except (TimeoutError, Unreachable) as error:
            self._owed.add(image.id)
            reason = str(error) or f"it took more than {_REMOVE_SECONDS:.0f} s"
            _log.warning("image %s is removed from containerd later: %s", image.id, reason)

    async def verify(self, image: Image) -> bool:
        """Tell whether containerd has *image*, and register it again when it has not; see `HandOff.verify`."""
        if self._is_trusted(image):
            return True
        try:
            whole = await self._publisher.is_whole(image, _ASK_SECONDS)
        except HandOffFailed:
            self._silent_until = asyncio.get_running_loop().time() + SILENT_SECONDS
            return True
        if not whole:
            return await self._repair(image)
        self._trust(image)
        return True

    def _is_trusted(self, image: Image) -> bool:
        """Say whether there is no need, or no way, to ask now."""
        now = asyncio.get_running_loop().time()
        known, until = self._verified.get(image.id, (None, 0.0))
        return not self._arrived.is_set() or now < self._silent_until or (known is image and now < until)

    async def _repair(self, image: Image) -> bool:
        _log.warning("containerd has lost image %s; it is registered again", image.id)
        try:
            async with self._limit() as limit:
                await self._publisher.publish(image, limit)
        except Unreachable:
            return True
        except (HandOffFailed, StoreDamaged, RootfsError) as error:
            self._failure = str(error)
            _log.error("image %s cannot be given to containerd: %s", image.id, error)
            return False
        self._trust(image)
        return True

    async def in_use(self, layers: frozenset[str]) -> frozenset[str]:
        """Return none: containerd's containers have directories of their own, and share inodes, not names."""
        return layers & frozenset()

    def status(self) -> dict[str, object]:
        """Return what the admin page shows."""
        counts = self._publisher.counts
        return {
            "state": "connected" if self._arrived.is_set() else "waiting",
            "address": self._socket,
            "version": self._version,
            "root": self._runtime_root,
            "files": self._reach.way,
            "why": self._reach.why,
            "layers": counts.layers,
            "links": counts.links,
            "copies": counts.copies,
            "copied_bytes": counts.copied_bytes,
            "failure": self._failure,
        }

    @asynccontextmanager
    async def _limit(self) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(PUBLISH_SECONDS) as limit:
                yield limit
        except TimeoutError:
            self._failure = (
                f"containerd at {self._socket} did not take the image within {PUBLISH_SECONDS:.0f} s; does it hang? "
                "See its log; the image is here, and the next pull gives it again"
            )
            raise Unreachable(self._failure) from None

    async def _publish(self, image: Image, limit: asyncio.Timeout) -> None:
        whole = False
        with suppress(HandOffFailed):  # a plugin that starts refuses to tell; registering waits for it
            whole = await self._publisher.is_whole(image, _ASK_SECONDS)
        begun = time.monotonic()
        try:
            if not whole:
                await self._publisher.publish(image, limit)
                _log.info("containerd has image %s after %.3f s", image.id, time.monotonic() - begun)
        except (HandOffFailed, StoreDamaged, RootfsError) as error:
            self._failure = str(error)
            raise
        self._failure = ""
        self._trust(image)

    def _trust(self, image: Image) -> None:
        self._verified[image.id] = (image, asyncio.get_running_loop().time() + TRUSTED_SECONDS)

    async def _reachable(self) -> None:
        if self._arrived.is_set():
            return
        left = self._gone_at + PATIENCE_SECONDS - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, left)):
                await self._arrived.wait()
        except TimeoutError:
            if self._client.connected and self._failure:
                raise Unreachable(f"containerd cannot be given images yet: {self._failure}") from None
            raise Unreachable(
                f"containerd at {self._socket} cannot be reached; is it running? It is given the image when it comes"
            ) from None

    # Records

    async def _names_to_remove(self, image: Image) -> set[str]:
        """Our names and those that others gave it, as far as they still mean this image.

        What the CRI plugin says lags behind: a name that has just moved may still be among the old image's.
        """
        targets = targets_of(image)
        seen = await self._client.seen(str(image.id))
        asked = {*names_of(image), *(seen[1] if seen is not None else ())}
        records = await self._client.records(map(named, asked))
        return {record.name for record in records if record.target.digest in targets}

    async def _pay(self) -> None:
        """Remove what could not be removed when it was asked for, from time to time."""
        while True:
            await asyncio.sleep(_OWED_SECONDS)
            gone = self._owed - self._store.catalog.images.keys()  # others are on their way out, or came back
            if not gone or not self._arrived.is_set():
                continue
            try:
                await self._sweep()
            except Exception as error:  # whatever it is, it is told, and tried again
                _log.warning("removed images are still in containerd: %s", error)
            else:
                self._owed -= gone

    async def _drop(self, names: set[str], spared: Callable[[], set[str]] = set) -> None:
        for left, name in zip(range(len(names) - 1, -1, -1), sorted(names), strict=True):
            if name in spared():
                continue
            await self._client.drop_record(name, collect=left == 0, seconds=_REMOVE_SECONDS)

    async def _sweep(self) -> None:
        """Remove records of ours whose image is gone."""
        records = await self._client.records([owned(*self._publisher.owner)])
        # One that is pulled again while others are dropped is spared.
        await self._drop({record.name for record in records} - self._known(), self._known)

    def _known(self) -> set[str]:
        return {name for image in self._store.catalog.images.values() for name in names_of(image)}

    # The connection

    async def _watch(self, renew: Callable[[], None]) -> None:
        async for connected in self._client.states():
            if connected:
                await self._arrive(renew)
            elif self._arrived.is_set():
                self._leave()

    def _leave(self) -> None:
        self._arrived.clear()
        self._verified.clear()
        self._gone_at = asyncio.get_running_loop().time()
        _log.warning("containerd at %s is gone; images are given to it when it comes back", self._socket)

    async def _arrive(self, renew: Callable[[], None]) -> None:
        while self._client.connected and not self._arrived.is_set():
            try:
                await self._make_ready()
            except Exception as error:  # whatever it is, it is told, and tried again: nobody else connects us
                self._failure = str(error) or type(error).__name__
                _log.warning("containerd cannot be given images yet: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self._failure = ""
                self._arrived.set()
                renew()

    async def _make_ready(self) -> None:
        self._version = await self._client.version()
        await self._client.seen(_NO_IMAGE)  # its CRI plugin starts after the rest of it
        for lease in await self._client.leases(self._publisher.owner):
            if lease not in self._publisher.leases:
                await self._client.end_lease(lease)
        self._reach = await run_job(self._store.helper.reach())
        if self._reach.way != "link":
            _log.warning("files for containerd: %s (%s)", self._reach.way or "nowhere", self._reach.why)
        await self._sweep()
        _log.info("containerd %s at %s is given images", self._version, self._socket)

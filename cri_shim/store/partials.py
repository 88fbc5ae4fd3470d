"""The blobs in `ingest/`: those that arrive, and those of pulls that were interrupted, which wait to be gone on with.

The waiting ones are bounded in bytes and in age; the oldest go first. They count as used room, for kubelet to see.
Age is that of the file, by the wall clock, as a restart must not make them young; one from the future is as new as can
be. What an ingest works on is never too old. What one repository has sent of a blob lies apart from what others have.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from cri_shim.store.image import Usage
from cri_shim.store.ingest import Arrival, Ingest, remove_partial
from cri_shim.store.rangemap import MapFile, path_of_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from rootfs.digest import Digest

T = TypeVar("T")
_BLOB: Final = re.compile(r"(sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})\.[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much of interrupted pulls is kept, and for how long; and whether what is kept is synced."""

    bytes: int = 16 << 30
    seconds: int = 86_400
    sync: bool = True


@dataclass(frozen=True, slots=True)
class _Waiting:
    size_bytes: int
    since_s: float


class Disk(Protocol):
    """Runs work in disk threads, as `Store` does; what was made for a caller who has gone is undone."""

    async def disk(self, work: Callable[[], T]) -> T: ...  # noqa: D102 - see the class
    async def made(self, work: Callable[[], T], undo: Callable[[T], object]) -> T: ...  # noqa: D102 - see the class


class Partials:
    """See the module. Every method but `find` is called on the event loop."""

    def __init__(self, directory: Path, keeping: Keeping, threads: Executor | None) -> None:
        self._directory = directory
        self._keeping = keeping
        self._threads = threads
        self._waiting: dict[str, _Waiting] = {}
        self._removing: dict[str, asyncio.Event] = {}
        self._pruning: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def find(self) -> None:
        """Take up what an earlier daemon has left, and delete what cannot be gone on with. Blocks on the disk."""
        for path in sorted(self._directory.iterdir()):
            if path.is_dir():
                _log.warning("%s is not ours and is left alone", path)
            elif _BLOB.fullmatch(path.name) and (known := _left(path)) is not None:
                self._waiting[path.name] = known
            elif not (path.suffix == ".map" and path.stem in self._waiting):
                path.unlink(missing_ok=True)
        old = self._too_many(time.time())
        self._remove(old)
        for name in old:
            del self._waiting[name]

    @property
    def usage(self) -> Usage:
        """What the waiting ones take."""
        return Usage(sum(one.size_bytes for one in self._waiting.values()), 2 * len(self._waiting))

    async def open(self, disk: Disk, blob: Digest, arrival: Arrival) -> Ingest:
        """Return an ingest of *blob*, which its origin is not sending now; it goes on with what that has left here.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails.
        """
        name = _name(blob, arrival.origin)
        while (removing := self._removing.get(name)) is not None:
            await removing.wait()
        before = self._waiting.pop(name, None)
        complete = replace(arrival, sync=self._keeping.sync, threads=self._threads)
        try:
            return await disk.made(lambda: Ingest(self._directory / name, complete), lambda made: made.close(keep=True))
        except BaseException:
            if before is not None:
                self._waiting[name] = before
            raise

    async def close(self, disk: Disk, ingest: Ingest, *, keep: bool) -> None:
        """End an ingest, keeping what has arrived for the next one if that is asked for."""
        keep = keep and self._keeping.bytes > 0 and self._keeping.seconds > 0
        size_bytes = await disk.disk(lambda: ingest.close(keep=keep))
        if size_bytes:
            self._waiting[ingest.path.name] = _Waiting(size_bytes, time.time())
            _log.info("kept %d bytes of %s for the next pull", size_bytes, ingest.path.name)
        await self.prune(disk)

    async def forget(self, disk: Disk, blobs: Iterable[Digest]) -> None:
        """Delete those of *blobs* that wait: their layers are here, and a kill came between."""
        stems = {_stem(blob) for blob in blobs}
        await self._delete(disk, tuple(name for name in self._waiting if name.partition(".")[0] in stems))

    async def prune(self, disk: Disk, *, everything: bool = False) -> None:
        """Delete what is too old or too much, or everything that waits."""
        await self._delete(disk, tuple(self._waiting) if everything else self._too_many(time.time()))

    async def _delete(self, disk: Disk, names: tuple[str, ...]) -> None:
        gone = asyncio.Event()
        for name in names:
            del self._waiting[name]
            self._removing[name] = gone
        self._look_again(disk)
        if not names:
            return
        try:
            await disk.disk(lambda: self._remove(names))
        finally:
            for name in names:
                del self._removing[name]
            gone.set()

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            remove_partial(self._directory / name)

    def _look_again(self, disk: Disk) -> None:
        """Come back when the oldest of those that wait is too old."""
        if self._timer is not None:
            self._timer.cancel()
        oldest = min((one.since_s for one in self._waiting.values()), default=None)
        if oldest is not None:
            delay = max(1.0, oldest + self._keeping.seconds + 1 - time.time())
            self._timer = asyncio.get_running_loop().call_later(delay, self._prune_later, disk)

    def _prune_later(self, disk: Disk) -> None:
        task = asyncio.create_task(self.prune(disk), name="delete blobs of old pulls")
        self._pruning.add(task)
        task.add_done_callback(self._pruned)

    def _pruned(self, task: asyncio.Task[None]) -> None:
        self._pruning.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("blobs of old pulls could not be deleted: %s", error)

    def _too_many(self, now_s: float) -> tuple[str, ...]:
        """Return the names to delete; the newest may stay as long as there is room."""
        room = self._keeping.bytes
        out: list[str] = []
        for name, one in sorted(self._waiting.items(), key=lambda item: -item[1].since_s):
            room -= one.size_bytes
            if room < 0 or now_s - one.since_s > self._keeping.seconds:
                out.append(name)
        return tuple(out)


def _stem(blob: Digest) -> str:
    return f"{blob.algorithm}-{blob.hex}"


def _name(blob: Digest, origin: str) -> str:
    # A repository must not be able to void what another one has left by sending something under the same digest.
    return f"{_stem(blob)}.{hashlib.blake2s(origin.encode(), digest_size=8).hexdigest()}"


def _left(path: Path) -> _Waiting | None:
    """Return what is known of the blob at *path*, None when no byte of it is of use."""
    file = MapFile(path_of_map(os.fspath(path)))
    try:
        known = file.read()
    finally:
        file.close()
    status = path.stat()
    if known is None or not known.within(status.st_size).ranges:
        return None
    return _Waiting(status.st_size, min(status.st_mtime, time.time()))

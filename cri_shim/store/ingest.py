"""A blob while it arrives: the file is the buffer between the download and the unpacker.

Several connections may fill it, each its own part; what is here is never written again. Unpackers follow the same file
through a descriptor of their own and learn through a pipe how far they may read. Bytes below the watermark are
contiguous and never change. When a download has to begin again, those who follow are told to give up and start over:
they may have read bytes that are void now.

What has arrived is brought to the disk and recorded in the map beside it, step by step, by another thread than those
that download; these wait when they are AHEAD_BYTES ahead, all together. So an interruption of any kind costs a chunk at
most, and the next ingest of the blob goes on from there, holes and all. An ingest is never trusted: whoever unpacks it
takes the digest of every byte, those of an earlier ingest included.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cri_shim.errors import Cancelled, NoSpace, StoreDamaged
from cri_shim.store.durable import from_os_error, sync_directory
from cri_shim.store.rangemap import LONGEST_VALIDATOR, MapFile, Range, RangeMap, path_of_map
from rootfs.failpoints import failpoint
from rootfs.watermarks import WatermarkWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future
    from pathlib import Path

STEP_BYTES: Final = 4 << 20
"""How much is brought to the disk and recorded at once."""

AHEAD_BYTES: Final = 2 * STEP_BYTES
"""How much may have been received and not been recorded."""

CHUNK_BYTES: Final = 16 << 20
"""How much an interruption may cost: that, and what the kernel has received meanwhile."""

KEPT_BYTES: Final = 1 << 20
"""A part that is smaller is not kept."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an ingest is for.

    Attributes:
        size_bytes: of the whole blob.
        origin: registry and repository that it comes from.
        sync: what is recorded is synced first.
        threads: where that is done; None for the thread that downloads.
        arriving: called when there is something to read, maybe more than once, in any thread.
    """

    size_bytes: int
    origin: str = ""
    sync: bool = True
    threads: Executor | None = None
    arriving: Callable[[], None] = lambda: None


class Ingest:
    """One growing file. Everything may be called from any thread; no two may put the same bytes at once.

    *generation* changes when what was written has become void; *position_bytes* is how far it is there without a hole,
    *resumed_bytes* what an earlier ingest has left, *hosts* are those who sent what is here, in order.
    """

    def __init__(self, path: Path, arrival: Arrival) -> None:
        """Open the file, and go on where an earlier ingest of the same origin stopped.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails.
        """
        self.path = path
        self.size_bytes = arrival.size_bytes
        self.generation = 0
        self._arrival = arrival
        self._complete = self._closed = self._broken = False
        self._users = 0
        self._changed = threading.Condition()
        self._followers: list[tuple[int, WatermarkWriter]] = []
        self._recorder = threading.Lock()
        self._recording: Future[None] | None = None
        with self._translated():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._map_file = MapFile(path_of_map(os.fspath(path)))
                self._written = self._resumed()
            except BaseException:
                os.close(self._fd)
                raise
        self._vouched = (self._written.host, self._written.validator)
        self.hosts: tuple[str, ...] = ()
        self.position_bytes = self._written.prefix_bytes
        self.resumed_bytes = self._recorded_bytes = self._written.present_bytes
        failpoint("ingest.made")
        if self.position_bytes:
            arrival.arriving()

    def _resumed(self) -> RangeMap:
        fresh = RangeMap(self.size_bytes, self._arrival.origin)
        known = self._map_file.read()
        if known is None:
            os.ftruncate(self._fd, 0)
            return fresh
        same = (known.size_bytes, known.origin) == (fresh.size_bytes, fresh.origin)
        whole = known.within(os.fstat(self._fd).st_size)
        kept = whole if same and whole.ranges else fresh
        if kept != known:
            self._map_file.write(kept, sync=self._arrival.sync)
        os.ftruncate(self._fd, kept.ranges[-1][1] if kept.ranges else 0)
        return kept

    @property
    def present_bytes(self) -> int:
        """How much is here, with holes or without."""
        return self._written.present_bytes

    def missing(self, first: int, end: int) -> tuple[Range, ...]:
        """Return what is not here yet of the bytes from *first* to before *end*, in order."""
        return self._written.missing(first, end)

    def validator_of(self, host: str) -> str:
        """Return what *host* said of the bytes that are here (ETag or Last-Modified), "" when it sent none of them."""
        sender, validator = self._vouched
        return validator if sender == host else ""

    def vouch(self, host: str, validator: str) -> None:
        """Note that *host* sends the next bytes, and what it says of them."""
        self._vouched = (host, validator if len(validator) <= LONGEST_VALIDATOR else "")
        self.hosts = (*(one for one in self.hosts if one != host), host)

    def append(self, data: bytes | memoryview) -> None:
        """Write *data* behind what is there, where nothing lies behind a hole; otherwise as `put`."""
        self.put(self.position_bytes, data)

    def put(self, offset_bytes: int, data: bytes | memoryview) -> int:
        """Write what is not here yet of *data*, which belongs at *offset_bytes*; return how many bytes that was.

        The followers have it as soon as nothing before it is missing.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails; or what came before could not be brought to it.
            Cancelled: the ingest was closed meanwhile.
        """
        view, new = memoryview(data), 0
        for first, end in self.missing(offset_bytes, offset_bytes + len(view)):
            self._write(first, view[first - offset_bytes : end - offset_bytes])
            new += end - first
        self._record_soon()
        return new

    def _write(self, offset_bytes: int, view: memoryview) -> None:
        while view:
            with self._using() as fd, self._translated():
                written = os.pwrite(fd, view, offset_bytes)
            self._note(offset_bytes, offset_bytes + written)
            offset_bytes += written
            view = view[written:]

    def _note(self, first: int, end: int) -> None:
        with self._changed:
            self._check_open()
            before = self.position_bytes
            self._written = self._written.adding(first, end)
            self.position_bytes = self._written.prefix_bytes
            if self.position_bytes > before:
                for _, follower in self._followers:
                    follower.advance(self.position_bytes)
        if self.position_bytes > before == 0:
            self._arrival.arriving()

    def restart(self) -> None:
        """Begin again at 0: what was written is void. Nobody may put anything meanwhile.

        Raises:
            NoSpace, StoreDamaged: the disk fails.
            Cancelled: the ingest was closed meanwhile.
        """
        with self._using(), self._translated():
            if not self._written.ranges:
                return
            self._await_record()
            nothing = replace(self._written, ranges=())
            if self._map_file.exists:
                self._map_file.write(nothing, sync=self._arrival.sync)
            with self._changed:
                self._written, self._vouched, self.hosts = nothing, ("", ""), ()
                self.position_bytes = self._recorded_bytes = 0
                self.generation += 1
                self._abandon_followers()

    def finish(self) -> None:
        """Say that every byte has arrived."""
        with self._changed:
            self._check_open()
            self._complete = True
            for _, follower in self._followers:
                follower.end(self.position_bytes)
        self._arrival.arriving()

    def follow(self) -> tuple[int, int, int]:
        """Return (descriptor of the blob, descriptor of its watermarks, generation) for one unpacker.

        Both descriptors are the caller's to close.

        Raises:
            Cancelled: the ingest was closed meanwhile.
        """
        with self._using() as fd:
            blob = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return blob, *self._followed()
            except BaseException:
                os.close(blob)
                raise

    def _followed(self) -> tuple[int, int]:
        with self._changed:
            self._check_open()
            reading, writing = os.pipe2(os.O_CLOEXEC)
            follower = WatermarkWriter(writing)
            self._followers.append((writing, follower))
            if self._complete:
                follower.end(self.position_bytes)
            elif self.position_bytes:
                follower.advance(self.position_bytes)
            return reading, self.generation

    def close(self, *, keep: bool = False) -> int:
        """Send away whoever follows, and keep what has arrived for the next ingest, or delete it; return what is kept.

        A second time is fine.
        """
        with self._changed:
            if self._closed:
                return 0
            self._closed = True
            self._abandon_followers()
            self._changed.wait_for(lambda: self._users == 0)
        try:
            kept = self._kept() if keep and self.present_bytes >= KEPT_BYTES else 0
        finally:
            os.close(self._fd)
            self._map_file.close()
        if not kept:
            remove_partial(self.path)
        return kept

    def _kept(self) -> int:
        with suppress(OSError, NoSpace, StoreDamaged):
            self._await_record()
            self._record()
            return 0 if self._broken else self._recorded_bytes
        return 0

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset* of what has arrived."""
        with self._using() as fd:
            return os.pread(fd, min(size, self.position_bytes - offset), offset)

    # What is recorded

    def _record_soon(self) -> None:
        """Have what has arrived brought to the disk, and wait for that when too much has."""
        ahead = self.present_bytes - self._recorded_bytes
        if ahead < STEP_BYTES:
            return
        with self._recorder:
            recording = self._recording
            if recording is None or recording.done():
                self._await_record()
                self._recording = self._begin_record()
                return
        if ahead >= AHEAD_BYTES:
            recording.result()

    def _begin_record(self) -> Future[None] | None:
        if self._arrival.threads is not None:
            return self._arrival.threads.submit(self._record_if_open)
        self._record_if_open()
        return None

    def _await_record(self) -> None:
        """Wait for what is being brought to the disk.

        Raises:
            NoSpace, StoreDamaged: it could not be; it is not tried again and called good.
        """
        recording = self._recording
        if recording is not None:
            recording.result()  # what failed stays, and is raised to everybody
            self._recording = None

    def _record_if_open(self) -> None:
        with suppress(Cancelled), self._using(), self._translated():
            self._record()

    def _record(self) -> None:
        if self._broken:
            return
        self._broken = True  # unless all of this succeeds: the kernel tells of a lost page once
        known, (host, validator), named = self._written, self._vouched, self._map_file.exists
        if self._arrival.sync:
            failpoint("ingest.data.sync")
            os.fdatasync(self._fd)
        self._map_file.write(replace(known, host=host, validator=validator), sync=self._arrival.sync)
        if self._arrival.sync and not named:
            sync_directory(self.path.parent)
        self._recorded_bytes = known.present_bytes
        self._broken = False

    # Open and closed

    @contextmanager
    def _using(self) -> Iterator[int]:
        """Have the descriptor, which stays open meanwhile; no lock is held."""
        with self._changed:
            self._check_open()
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise from_os_error(error, self.path.parent) from error

    def _abandon_followers(self) -> None:
        for writing, follower in self._followers:
            if not self._complete:
                follower.abandon()
            os.close(writing)
        self._followers.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("the download was given up")


def remove_partial(path: Path) -> None:
    """Delete a blob that is not whole, and its map; absent is fine."""
    for name in (path_of_map(os.fspath(path)), os.fspath(path)):
        with suppress(FileNotFoundError):
            os.unlink(name)

"""A blob while it arrives: the file is the buffer between the download and the unpacker.

The download thread appends; unpackers follow the same file through a descriptor of their own and learn through a pipe
how far they may read. Bytes below the watermark are contiguous and never change. When a download has to begin again,
those who follow are told to give up and start over: they may have read bytes that are void now.

An ingest is never trusted: whoever unpacks it takes the digest of every byte.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from cri_shim.errors import Cancelled
from cri_shim.store.durable import from_os_error
from rootfs.watermarks import WatermarkWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Ingest:
    """One growing file. Appending is for one thread; everything else may be called from any thread.

    *generation* changes when what was written has become void.
    """

    def __init__(self, path: Path, size_bytes: int, arriving: Callable[[], None] = lambda: None) -> None:
        """Make the file. *arriving* is called when there is something to read, maybe more than once, in any thread.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails.
        """
        self._path = path
        self.size_bytes = size_bytes
        self.position_bytes = 0
        self.generation = 0
        self._complete = False
        self._arriving = arriving
        self._lock = threading.Lock()
        self._followers: list[tuple[int, WatermarkWriter]] = []
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise from_os_error(error, path.parent) from error

    def append(self, data: bytes | memoryview) -> None:
        """Write *data* behind what is there and let the followers have it.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails.
            Cancelled: the ingest was closed meanwhile.
        """
        view = memoryview(data)
        while view:
            with self._lock:
                self._check_open()
                try:
                    written = os.pwrite(self._fd, view, self.position_bytes)
                except OSError as error:
                    raise from_os_error(error, self._path.parent) from error
                if self.position_bytes == 0:
                    self._arriving()
                self.position_bytes += written
                for _, follower in self._followers:
                    follower.advance(self.position_bytes)
            view = view[written:]

    def restart(self) -> None:
        """Begin again at 0: what was written is void."""
        with self._lock:
            self._check_open()
            if self.position_bytes == 0:
                return
            self.position_bytes = 0
            self.generation += 1
            self._abandon_followers()

    def finish(self) -> None:
        """Say that every byte has arrived."""
        with self._lock:
            self._check_open()
            self._complete = True
            self._arriving()
            for _, follower in self._followers:
                follower.end(self.position_bytes)

    def follow(self) -> tuple[int, int, int]:
        """Return (descriptor of the blob, descriptor of its watermarks, generation) for one unpacker.

        Both descriptors are the caller's to close.

        Raises:
            Cancelled: the ingest was closed meanwhile.
        """
        with self._lock:
            self._check_open()
            blob = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            follower = WatermarkWriter(writing)
            self._followers.append((writing, follower))
            if self._complete:
                follower.end(self.position_bytes)
            elif self.position_bytes:
                follower.advance(self.position_bytes)
            return blob, reading, self.generation

    def close(self) -> None:
        """Delete the file and send away whoever follows it. A second time is fine."""
        with self._lock:
            if self._fd < 0:
                return
            self._abandon_followers()
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._path)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset* of what has arrived."""
        with self._lock:
            self._check_open()
            return os.pread(self._fd, min(size, self.position_bytes - offset), offset)

    def _abandon_followers(self) -> None:
        for writing, follower in self._followers:
            if not self._complete:
                follower.abandon()
            os.close(writing)
        self._followers.clear()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise Cancelled("the download was given up")

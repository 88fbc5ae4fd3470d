"""The growing file: a blob that is read while it is still being downloaded.

The downloader writes the file and says through a pipe how far it is final; the unpacker reads the file up to there and
waits on the pipe otherwise. Rule: bytes below a watermark never change, and a pipe that ends without an end record
says that the download was given up, never that it is complete.

A record is `struct "<BQ"`: 1 = watermark (bytes below it are final), 2 = end (the total; the file is complete),
3 = abandon. A record is written in one piece (nine bytes are less than PIPE_BUF), so records of a pipe never mix.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import Final

from rootfs.errors import ContentMismatch, HelperFailed, JobCancelled

WATERMARK: Final = 1
END: Final = 2
ABANDON: Final = 3

_RECORD: Final = struct.Struct("<BQ")
_COUNT: Final = struct.Struct("i")
# A watermark is dropped when this many bytes wait unread, long before the pipe is full: the next one says more, and
# room for the end record always remains.
_WAITING_BYTES: Final = 2048
_READ_BYTES: Final = 4096


class WatermarkWriter:
    """The downloader's end of the pipe; never blocks, and a reader that is gone is no error.

    The descriptor stays the caller's to close, after `end` or `abandon`.
    """

    __slots__ = ("_descriptor", "_told_bytes")

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._told_bytes = 0

    def advance(self, final_bytes: int) -> None:
        """Say that the first *final_bytes* of the file are final; dropped while the reader is far behind."""
        if final_bytes > self._told_bytes and self._unread_bytes() < _WAITING_BYTES:
            self._told_bytes = final_bytes
            self._write(WATERMARK, final_bytes)

    def end(self, total_bytes: int) -> None:
        """Say that the file is complete and *total_bytes* long."""
        self._write(END, total_bytes)

    def abandon(self) -> None:
        """Say that the rest will not come."""
        self._write(ABANDON, 0)

    def _unread_bytes(self) -> int:
        answer = fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(_COUNT.size))
        return int(_COUNT.unpack(answer)[0])

    def _write(self, kind: int, count_bytes: int) -> None:
        try:
            os.write(self._descriptor, _RECORD.pack(kind, count_bytes))
        except BrokenPipeError:
            return


class FollowingReader:
    """Reads a growing blob from its first byte; a `rootfs.compression.Reader`.

    It reads at most *size_bytes*, the length that the blob's descriptor declares: a file that turns out longer is
    refused before the first byte too many is read, a shorter one as soon as that is known.
    """

    __slots__ = ("_blob", "_ended", "_final_bytes", "_partial", "_position_bytes", "_size_bytes", "_watermarks")

    def __init__(self, blob: int, watermarks: int, *, size_bytes: int) -> None:
        self._blob = blob
        self._watermarks = watermarks
        self._size_bytes = size_bytes
        self._position_bytes = 0
        self._final_bytes = 0
        self._partial = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Give up to *size* bytes, waiting for the first of them; b"" at the end of the blob.

        Raises:
            ContentMismatch: the file is not as long as was declared, or was cut.
            JobCancelled: the download was given up.
            HelperFailed: the pipe carries something else than records.
        """
        while self._position_bytes >= self._final_bytes:
            if self._ended:
                return b""
            self._follow()
        data = os.pread(self._blob, min(size, self._final_bytes - self._position_bytes), self._position_bytes)
        if not data:
            raise ContentMismatch(f"the downloaded file was cut at {self._position_bytes} bytes")
        self._position_bytes += len(data)
        return data

    def _follow(self) -> None:
        """Wait for the pipe and take in its records."""
        arrived = os.read(self._watermarks, _READ_BYTES)
        if not arrived:
            raise JobCancelled("the download was given up")
        records = self._partial + arrived
        whole = len(records) - len(records) % _RECORD.size
        self._partial = records[whole:]
        for kind, count_bytes in _RECORD.iter_unpack(records[:whole]):
            self._take(kind, count_bytes)

    def _take(self, kind: int, count_bytes: int) -> None:
        if kind == ABANDON:
            raise JobCancelled("the download was given up")
        if kind not in (WATERMARK, END):
            raise HelperFailed(f"unknown record {kind} about the progress of a download")
        if count_bytes > self._size_bytes or (kind == END and count_bytes != self._size_bytes):
            raise ContentMismatch(f"the blob should have {self._size_bytes} bytes, {count_bytes} were received")
        self._final_bytes = max(self._final_bytes, count_bytes)
        self._ended = self._ended or kind == END

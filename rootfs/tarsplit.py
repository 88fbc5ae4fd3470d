"""The record of a tar beside its unpacked files, from which the very same tar can be made again. The door to fastcrc.

The format is tar-split's (github.com/vbatts/tar-split), as containers-storage keeps it: gzip of JSON lines, numbered by
`position`. Type 2 is a segment, bytes of the tar as they are (headers, padding, what follows the end). Type 1 is an
entry: its `name` (`name_raw` in base64 where that is not UTF-8) and, when its content is to be taken from the file of
that name, `size` and as `payload` the eight bytes of its CRC-64/GO-ISO, big-endian, in base64; otherwise `payload` is
null.

What has no file of its own stands in segments as well: the content of sparse files, whose holes are not in the tar,
and of whiteouts. A layer that gives a name twice has overwritten what the record refers to: it gets no record, and
neither does one whose record grows over its bound; both stay usable, but cannot be put together again.
"""

from __future__ import annotations

import json
import os
import re
from binascii import b2a_base64
from dataclasses import dataclass
from typing import Final

from fastcrc import crc64

from rootfs.compression import new_gzip
from rootfs.digest import Digest, new_hash

SEGMENT_BYTES: Final = 512 << 10
"""The longest segment that is written as one line, before base64; some chunks more when it began shorter."""

REPLACED: Final = "replaced"
"""Why there is no record: the layer replaces something of its own."""
TOO_LONG: Final = "too long"
"""Why there is no record: it is longer than its bound."""

_LINES: Final = 128
"""How many lines are compressed at once: of those that are long, few are waiting, for their segments are cut."""
_SHORT_BYTES: Final = 8 << 10
_SEGMENT: Final = b'{"type":2,"payload":"%b","position":%d}\n'
_SEGMENT_AND_FILE: Final = _SEGMENT + b'{"type":1,"name":"%b","size":%d,"payload":"%b","position":%d}\n'
_SEGMENT_AND_ENTRY: Final = _SEGMENT + b'{"type":1,"name":"%b","payload":null,"position":%d}\n'
_PLAIN_NAME: Final = re.compile(rb"[ !#-\[\]-~]*")

crc64_iso = crc64.go_iso
"""CRC-64/GO-ISO of bytes; a second argument is the sum of what came before."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a record.

    Attributes:
        digest: of the file, None when there is none.
        size_bytes: of the file, 0 when there is none.
        lost: why there is none: `REPLACED`, `TOO_LONG`, or "".
    """

    digest: Digest | None
    size_bytes: int
    lost: str = ""


class Recorder:
    """Writes a record into an empty file while the layer is unpacked.

    Args:
        descriptor: of the file, open for writing; stays the caller's. Without a record it is left empty.
        limit_bytes: the longest that the file may become.
    """

    __slots__ = (
        *("_crc", "_descriptor", "_gzip", "_hash", "_limit_bytes", "_lines", "_lost", "_pending", "_pending_bytes"),
        *("_position", "_size", "_size_bytes"),
    )

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._gzip = new_gzip()
        self._hash = new_hash("sha256")
        self._size_bytes = 0
        self._lines: list[bytes] = []
        self._pending: list[bytes] = []  # the segment that is not written yet
        self._pending_bytes = 0
        self._position = 0
        self._crc = 0
        self._size = 0
        self._lost = ""

    def raw(self, data: bytes) -> None:
        """Take bytes of the tar that have no file.

        Raises:
            OSError: the record cannot be written.
        """
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= SEGMENT_BYTES:
            self._end_segment()

    def content(self, data: bytes | memoryview) -> None:
        """Take bytes that are in the file of the present entry."""
        self._crc = crc64_iso(data, self._crc)
        self._size += len(data)

    def whole(self, before: bytes, content: bytes | memoryview) -> None:
        """Take what `raw` and `content` take, which is all of an entry, at once.

        Raises:
            OSError: the record cannot be written.
        """
        if before:
            self._pending.append(before)
            self._pending_bytes += len(before)
        self._crc = crc64_iso(content)
        self._size = len(content)

    def entry(self, name: bytes, *, again: bool = False) -> None:
        """End the present entry. An entry without a file that has its name *again* is left to the segments.

        Raises:
            OSError: the record cannot be written.
        """
        if again:
            return
        pending = self._pending
        if len(pending) != 1 or self._pending_bytes > _SHORT_BYTES or not _PLAIN_NAME.fullmatch(name):
            self._end_segment()
            self._end_entry(name)
            return
        # Nearly always: one header, of an entry with a plain name.
        position = self._position
        self._position = position + 2
        self._pending_bytes = 0
        segment = b2a_base64(pending.pop(), newline=False)
        if size := self._size:
            checksum = b2a_base64(self._crc.to_bytes(8, "big"), newline=False)
            self._size = self._crc = 0
            line = _SEGMENT_AND_FILE % (segment, position, name, size, checksum, position + 1)
        else:
            line = _SEGMENT_AND_ENTRY % (segment, position, name, position + 1)
        lines = self._lines
        lines.append(line)
        if len(lines) >= _LINES:
            self._flush()

    def _end_entry(self, name: bytes) -> None:
        named = b'"name":"%b"' % name if _PLAIN_NAME.fullmatch(name) else _named(name)
        if self._size:
            checksum = b2a_base64(self._crc.to_bytes(8, "big"), newline=False)
            tail = b',"size":%d,"payload":"%b","position":%d}\n' % (self._size, checksum, self._position)
            self._size = self._crc = 0
        else:
            tail = b',"payload":null,"position":%d}\n' % self._position
        self._position += 1
        self._write(b'{"type":1,' + named + tail)

    def finish(self, lost: str = "") -> Record:
        """Complete the file and say what it is; empty it where the record is *lost*.

        Raises:
            OSError: the record cannot be written.
        """
        self._end_segment()
        if not (lost or self._lost):
            self._flush()
            self._put(self._gzip.flush())
        lost = self._lost or lost
        if lost:
            os.ftruncate(self._descriptor, 0)
            return Record(None, 0, lost)
        return Record(Digest.finished(self._hash), self._size_bytes)

    def _end_segment(self) -> None:
        """Write what is pending, if anything is."""
        data = b"".join(self._pending)
        self._pending = []
        self._pending_bytes = 0
        if data:
            self._write(_SEGMENT % (b2a_base64(data, newline=False), self._position))
            self._position += 1
            if len(data) > _SHORT_BYTES:
                self._flush()

    def _write(self, line: bytes) -> None:
        self._lines.append(line)
        if len(self._lines) >= _LINES:
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not self._lost:
            self._put(self._gzip.compress(b"".join(lines)))

    def _put(self, data: bytes) -> None:
        self._size_bytes += len(data)
        if self._size_bytes > self._limit_bytes:
            self._lost = TOO_LONG
            return
        self._hash.update(data)
        while data:
            data = data[os.write(self._descriptor, data) :]


def _named(name: bytes) -> bytes:
    try:
        return b'"name":' + json.dumps(name.decode("utf-8")).encode("ascii")
    except UnicodeDecodeError:
        return b'"name_raw":"%b"' % b2a_base64(name, newline=False)

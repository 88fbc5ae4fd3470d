"""What is known of a blob that has not arrived whole: which of its bytes are on the disk, and from where they came.

A range is recorded after its data was synced, so that what the map says is there after a power cut too; whether it is
what the digest promises, only the reader of the whole can tell. The map lies beside the blob in a file of two slots,
written in turn, each with a number and a checksum: of the slots that are whole the newer one counts, and a write that
was torn leaves the other. Ranges need not begin where others end, so that several connections can fill one file.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from rootfs.failpoints import failpoint

SLOT_BYTES: Final = 4096
MOST_RANGES: Final = 64
LONGEST_VALIDATOR: Final = 256

_HEAD: Final = struct.Struct("<III")  # checksum of what follows, number, length
_SUFFIX: Final = ".map"

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RangeMap:
    """The state of a blob on its way.

    Attributes:
        size_bytes: how long the whole is.
        origin: registry and repository that it comes from: only they may go on with it, for whoever has a part here
            without having been sent it could claim the whole by sending the rest.
        ranges: (first byte, byte after the last), in order, with a gap between any two.
        host: who sent the last of it, and *validator* its ETag or Last-Modified there, "" for none.
    """

    size_bytes: int
    origin: str
    ranges: tuple[Range, ...] = ()
    host: str = ""
    validator: str = ""

    @property
    def prefix_bytes(self) -> int:
        """How many bytes are there from the first one on without a hole."""
        return self.ranges[0][1] if self.ranges and self.ranges[0][0] == 0 else 0

    @property
    def present_bytes(self) -> int:
        """How many bytes are there, wherever they lie."""
        return sum(end - first for first, end in self.ranges)

    def missing(self, first: int, end: int) -> tuple[Range, ...]:
        """Return what is not there of the bytes from *first* to before *end*, in order."""
        holes: list[Range] = []
        for begins, ends in self.ranges:
            if first < min(begins, end):
                holes.append((first, min(begins, end)))
            first = max(first, ends)
        return (*holes, (first, end)) if first < end else tuple(holes)

    def within(self, length_bytes: int) -> RangeMap:
        """Return the map without the ranges that end behind a file of *length_bytes*: it was cut, so they are void."""
        return replace(self, ranges=tuple(one for one in self.ranges if one[1] <= length_bytes))

    def adding(self, first: int, end: int) -> RangeMap:
        """Return the map with the bytes from *first* to before *end* as well; of too many ranges the last go."""
        if not 0 <= first < end <= self.size_bytes:
            return self
        merged: list[Range] = []
        for one in sorted((*self.ranges, (first, end))):
            if merged and one[0] <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], one[1]))
            else:
                merged.append(one)
        return replace(self, ranges=tuple(merged[:MOST_RANGES]))


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    size: int
    origin: str
    ranges: list[Range]
    host: str
    validator: str


def path_of_map(blob: str) -> str:
    """Return where the map of the blob at the path *blob* lies."""
    return blob + _SUFFIX


class MapFile:
    """The file of a map. For one thread at a time; everything blocks on the disk."""

    def __init__(self, path: str) -> None:
        """Open it if it is there; else it is made by the first `write`.

        Raises:
            OSError: the disk refuses.
        """
        self._path = path
        self._number = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self._fd = -1

    @property
    def exists(self) -> bool:
        """Whether the file is there."""
        return self._fd >= 0

    def close(self) -> None:
        """Close it."""
        if self.exists:
            os.close(self._fd)
            self._fd = -1

    def read(self) -> RangeMap | None:
        """Return the map, or None when there is none, or no slot is whole."""
        found: RangeMap | None = None
        if not self.exists:
            return None
        for slot in (0, 1):
            number, known = _decoded(os.pread(self._fd, SLOT_BYTES, slot * SLOT_BYTES))
            if known is not None and number >= self._number:
                self._number, found = number, known
        return found

    def write(self, known: RangeMap, *, sync: bool) -> None:
        """Put *known* in the place of the older slot.

        Raises:
            OSError: the disk refuses; the map says what it said before.
        """
        if not self.exists:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        number = self._number + 1
        os.pwrite(self._fd, _encoded(number, known), (number % 2) * SLOT_BYTES)
        if sync:
            failpoint("ingest.map.sync")
            os.fdatasync(self._fd)
        self._number = number


def _encoded(number: int, known: RangeMap) -> bytes:
    fields = _Fields(known.size_bytes, known.origin, list(known.ranges), known.host, known.validator)
    body = msgspec.json.encode(fields)[: SLOT_BYTES - _HEAD.size]  # one that is cut cannot be read, and is no map
    rest = _HEAD.pack(0, number, len(body))[4:] + body
    return struct.pack("<I", zlib.crc32(rest)) + rest


def _decoded(data: bytes) -> tuple[int, RangeMap | None]:
    if len(data) < _HEAD.size:
        return 0, None
    checksum, number, length = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + length]
    if len(body) != length or zlib.crc32(data[4 : _HEAD.size + length]) != checksum:
        return 0, None
    try:
        fields = msgspec.json.decode(body, type=_Fields)
    except msgspec.DecodeError:
        return 0, None
    known = RangeMap(fields.size, fields.origin, host=fields.host, validator=fields.validator)
    for first, end in fields.ranges:
        known = known.adding(first, end)
    return number, known

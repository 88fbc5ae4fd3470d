"""Who fetches what of a blob: its missing bytes, handed out in segments, those nearest the beginning first."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

Range = tuple[int, int]


class Sink(Protocol):
    """Where a blob grows. Bytes before `position_bytes` are there and stay."""

    @property
    def position_bytes(self) -> int:
        """How many bytes are there, from the first, without a hole."""

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes; *data* is reused afterwards."""

    def restart(self) -> None:
        """Forget everything: the position is 0 again."""

    def validator_of(self, host: str) -> str:
        """Return the ETag or Last-Modified that *host* gave with the bytes that are here, "" for none."""

    def vouch(self, host: str, validator: str) -> None:
        """Note what *host* says of the bytes that it sends next."""


@runtime_checkable
class RandomSink(Sink, Protocol):
    """A sink that takes bytes in any order, from several threads, each its own part."""

    @property
    def present_bytes(self) -> int:
        """How many bytes are there, wherever they lie."""

    def missing(self, first: int, end: int) -> Sequence[Range]:
        """Return what is not there of the bytes from *first* to before *end*, in order."""

    def put(self, offset_bytes: int, data: bytes | memoryview) -> int:
        """Take what is not there yet of *data*, which belongs at *offset_bytes*; return how many bytes that was."""


@dataclass(eq=False, slots=True)
class Segment:
    """Bytes that one connection fetches: from *first*, which moves on, to before *end*."""

    first: int
    end: int


class Segments:
    """See the module. Safe from any thread; a segment is its taker's until it is given back."""

    def __init__(self, sink: Sink, size_bytes: int) -> None:
        self.sink = sink
        self.size_bytes = size_bytes
        self._random = sink if isinstance(sink, RandomSink) else None
        self._lock = threading.Lock()
        self._taken: list[Segment] = []

    @property
    def in_order(self) -> bool:
        """Whether the sink takes nothing but the next bytes."""
        return self._random is None

    @property
    def present_bytes(self) -> int:
        """How much is there."""
        return self.sink.position_bytes if self._random is None else self._random.present_bytes

    def take(self, share: int = 0, *, most_bytes: int = 0, least_bytes: int = 0) -> Segment | None:
        """Return the first bytes that are missing and nobody's, None where there are none.

        With a *share* they are at most so many bytes as is left for each of so many connections, and *most_bytes*, but
        *least_bytes* in any case; else all up to what is there or somebody's.
        """
        with self._lock:
            free = self._free()
            if not free:
                return None
            first, end = free[0]
            if share:
                fair = sum(ends - begins for begins, ends in free) // share
                end = min(end, first + max(least_bytes, min(most_bytes, fair)))
            segment = Segment(first, end)
            self._taken.append(segment)
            return segment

    def give_back(self, segment: Segment) -> None:
        """Let others have what is left of *segment*."""
        with self._lock:
            self._taken.remove(segment)

    def cut(self, segment: Segment, length_bytes: int) -> None:
        """Leave the taker of *segment* its next *length_bytes*; the rest is nobody's."""
        with self._lock:
            segment.end = min(segment.end, segment.first + length_bytes)

    def widen(self, segment: Segment) -> None:
        """Let *segment* be the whole blob, for a host that sends all of it; nobody else may have one."""
        with self._lock:
            segment.first, segment.end = 0, self.size_bytes

    def put(self, segment: Segment, offset_bytes: int, data: memoryview) -> int:
        """Give the sink *data* of *segment*; return how many bytes were new."""
        if self._random is not None:
            new = self._random.put(offset_bytes, data)
        else:
            rest = data[max(0, self.sink.position_bytes - offset_bytes) :]
            new = len(rest)
            if rest:
                self.sink.append(rest)
        with self._lock:
            segment.first = max(segment.first, offset_bytes + len(data))
        return new

    def _free(self) -> list[Range]:
        """Return what is missing and nobody's; what was taken is looked at first: it moves on when bytes are in."""
        taken = sorted((one.first, one.end) for one in self._taken)
        free = []
        for first, end in self._missing():
            for begins, ends in taken:
                if first < min(begins, end):
                    free.append((first, min(begins, end)))
                first = max(first, ends)  # noqa: PLW2901 (what is left of the hole)
            if first < end:
                free.append((first, end))
        return free

    def _missing(self) -> Sequence[Range]:
        if self._random is not None:
            return self._random.missing(0, self.size_bytes)
        first = self.sink.position_bytes
        return ((first, self.size_bytes),) if first < self.size_bytes else ()

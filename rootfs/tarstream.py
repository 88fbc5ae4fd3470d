"""The entries of a tar, one after another, straight from a stream.

Follows Go's archive/tar (see tarheader) also in what surrounds headers: what belongs to an entry, where the next one
starts, how an archive ends. One chunk of the stream is held at a time; a header that lies across two is the only thing
that is copied together. Every length is bounded before it is believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rootfs.errors import LayerRejected, LimitExceeded, shown
from rootfs.tarheader import (
    BLOCK_BYTES,
    EXTENSIONS,
    GNU_LINK,
    GNU_NAME,
    HEADER_ONLY,
    KINDS,
    PAX,
    PAX_GLOBAL,
    REGULAR,
    Entry,
    merge_pax,
    parse_header,
    parse_pax,
    settle_kind,
)
from rootfs.tarsparse import apply_sparse, is_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootfs.compression import Reader
    from rootfs.limits import Limits
    from rootfs.tarsplit import Recorder

CHUNK_BYTES: Final = 256 << 10
"""How much is asked of the stream at once: it stays in the processor's cache while it is hashed and written."""

_END: Final = bytes(BLOCK_BYTES)
_EXTENSIONS_PER_ENTRY: Final = 4


class TarStream:
    """Reads a tar from *source*. `next` gives entries; `whole` or `pieces` give the content of the latest one.

    A *record* gets all of the tar: as content what `whole` and `content` give, and everything else as it is.
    """

    __slots__ = (
        *("_at", "_data", "_extensions", "_left", "_limits", "_pad", "_record", "_recorded", "_source"),
        *("_sparse_bytes", "entries"),
    )

    def __init__(self, source: Reader, limits: Limits, record: Recorder | None = None) -> None:
        self._source = source
        self._record = record
        self._recorded = 0  # the record has the bytes at hand up to here
        self._limits = limits
        self._data = b""
        self._at = 0
        self._left = 0  # bytes of the present content that were not read yet
        self._pad = 0  # bytes between it and the next header
        self._extensions = 0
        self._sparse_bytes = 0
        self.entries = 0

    def next(self) -> Entry | None:
        """Give the next entry, or None at the end of the archive. Content that was not read is passed over.

        Raises:
            LayerRejected: the archive is corrupt or cut off.
            LimitExceeded: too many entries, an extended header or a name over its bound.
        """
        if self._left or self._pad:
            end = self._at + self._left + self._pad
            if end <= len(self._data):  # as it mostly is: all of it is at hand
                self._at = end
                self._left = self._pad = 0
            else:
                self._pass_over()
        entry = self._header()
        if entry is None:
            return None
        kind = entry.kind
        if kind == REGULAR:
            stored = entry.stored_bytes
            if stored < 0:
                raise LayerRejected("not a tar header: a size is negative")
            self._left, self._pad = stored, -stored % BLOCK_BYTES
        elif kind in EXTENSIONS:
            return self._extended(entry)
        else:
            self._finish(entry, {})
        self._count()
        return entry

    def whole(self) -> bytes | memoryview | None:
        """Give all of the content, which lies in a file of its own, if it is at hand, which it is for most files."""
        at, left = self._at, self._left
        if left > len(self._data) - at:
            return None
        end = at + left
        content = self._data[at:end] if left < 16384 else memoryview(self._data)[at:end]
        record = self._record
        if record is not None:
            record.whole(self._data[self._recorded : at], content)
            self._recorded = end
        self._at = end
        self._left = 0
        return content

    def content(self) -> Iterator[memoryview]:
        """Give all of the content, which lies in a file of its own, in pieces as they come."""
        self._tell()
        record = self._record
        for piece in self.pieces(self._left):
            if record is not None:
                record.content(piece)
                self._recorded = self._at
            yield piece

    def end_entry(self, entry: Entry, *, again: bool) -> None:
        """Tell the record that all of *entry* was read that is going to be, and whether its name came *again*."""
        record = self._record
        if record is not None:
            if self._recorded < self._at:
                record.raw(self._data[self._recorded : self._at])
                self._recorded = self._at
            record.entry(entry.name, again=again)

    def finish(self) -> None:
        """Read what follows the end of the archive."""
        while self._refill():
            self._at = len(self._data)

    def _tell(self) -> None:
        """Hand what was read since the last time to the record."""
        if self._record is not None and self._recorded < self._at:
            self._record.raw(self._data[self._recorded : self._at])
            self._recorded = self._at

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Give the next *size_bytes* of the content, in pieces as they come."""
        while size_bytes:
            if self._at == len(self._data) and not self._refill():
                raise LayerRejected("the archive is cut off inside of a file")
            piece = memoryview(self._data)[self._at : self._at + size_bytes]
            self._at += len(piece)
            self._left -= len(piece)
            size_bytes -= len(piece)
            yield piece

    def _refill(self) -> bool:
        if self._record is not None and self._recorded < len(self._data):
            self._record.raw(self._data[self._recorded :])
        self._data = self._source.read(CHUNK_BYTES)
        self._at = self._recorded = 0
        return bool(self._data)

    def _header(self) -> Entry | None:
        data, at = self._data, self._at
        if len(data) - at >= BLOCK_BYTES:
            self._at = at + BLOCK_BYTES
        else:
            data, at = self._across(), 0
        if not data or (not data[at] and data[at : at + BLOCK_BYTES] == _END):
            self._end(data)
            return None
        return parse_header(data, at)

    def _across(self) -> bytes:
        """Put together a block that does not lie in one chunk; nothing at the end of the stream."""
        parts = [self._data[self._at :]]
        missing = BLOCK_BYTES - len(parts[0])
        while missing and self._refill():
            parts.append(self._data[:missing])
            self._at = len(parts[-1])
            missing -= self._at
        if missing and missing != BLOCK_BYTES:
            raise LayerRejected("the archive is cut off inside of a header")
        return b"".join(parts)

    def _end(self, block: bytes) -> None:
        """Two blocks of zeros, one, or nothing end an archive; one and then something else does not."""
        if block and self._across_or_next() not in (b"", _END):
            raise LayerRejected("not a tar header: something follows a block of zeros")

    def _across_or_next(self) -> bytes:
        start = self._at
        if len(self._data) - start < BLOCK_BYTES:
            return self._across()
        self._at = start + BLOCK_BYTES
        return self._data[start : self._at]

    def _begin(self, entry: Entry) -> None:
        """Note where the content of *entry* ends."""
        stored = entry.stored_bytes
        if stored < 0:
            raise LayerRejected("not a tar header: a size is negative")
        self._left = stored
        self._pad = -stored % BLOCK_BYTES

    def _pass_over(self) -> None:
        """Skip the rest of the content. It must be there; the padding after it may be missing at the very end."""
        for _ in self.pieces(self._left):
            pass
        pad, self._pad = self._pad, 0
        while pad and (self._at < len(self._data) or self._refill()):
            step = min(pad, len(self._data) - self._at)
            self._at += step
            pad -= step

    def _extended(self, header: Entry | None) -> Entry | None:
        """Read extended headers and the entry they belong to. Of each kind the last one counts."""
        records: dict[bytes, bytes] = {}
        name = link = b""
        while header is not None and header.kind in EXTENSIONS:
            kind, data = header.kind, self._special(header)
            if kind == PAX:
                records = parse_pax(data, self._limits)
            elif kind == PAX_GLOBAL:
                parse_pax(data, self._limits)
                records, name, link = {}, b"", b""  # Go hands a global header out as an entry: what came before is lost
            elif kind == GNU_NAME:
                name = data.partition(b"\0")[0]
            elif kind == GNU_LINK:
                link = data.partition(b"\0")[0]
            header = self._header()
        if header is None:
            return None
        if records:
            merge_pax(header, records)
        header.name = name or header.name
        header.link = link or header.link
        self._finish(header, records)
        self._count()
        return header

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise LimitExceeded(f"the layer has more than {self._limits.entries} entries", "entries")

    def _special(self, header: Entry) -> bytes:
        """Read the content of an extended header."""
        self._extensions += 1
        if self._extensions > _EXTENSIONS_PER_ENTRY * self._limits.entries:
            raise LimitExceeded("the layer has more extended headers than it may have entries", "entries")
        size = header.stored_bytes
        if size < 0:
            raise LayerRejected("not a tar header: a size is negative")
        if size > self._limits.header_bytes:
            raise LimitExceeded(f"an extended header is longer than {self._limits.header_bytes} bytes", "header_bytes")
        pad, at = -size % BLOCK_BYTES, self._at
        if at + size + pad <= len(self._data):  # as it mostly is: all of it is at hand
            self._at = at + size + pad
            return self._data[at : at + size]
        self._left, self._pad = size, pad
        data = self._take(size)
        self._pass_over()
        return data

    def _take(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def _finish(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        """Settle what depends on more than one header, and refuse what nobody can mean."""
        settle_kind(entry)
        if entry.kind not in KINDS:
            raise LayerRejected(f"an entry of the type {shown(entry.kind)}, which layers do not have")
        if entry.kind in HEADER_ONLY:
            entry.size_bytes = entry.stored_bytes = 0
        self._begin(entry)
        if is_sparse(records):
            apply_sparse(entry, records, self._take, self._limits)
            self._count_sparse(entry)
        if 0 in entry.name or 0 in entry.link:
            raise LayerRejected(f"a NUL in the name {shown(entry.name)}")
        if max(len(entry.name), len(entry.link)) > self._limits.path_bytes:
            raise LimitExceeded(f"a name is longer than {self._limits.path_bytes} bytes", "path_bytes")

    def _count_sparse(self, entry: Entry) -> None:
        """What a sparse file pretends to have costs no stream, so it counts on its own."""
        self._left = entry.stored_bytes
        self._sparse_bytes += entry.size_bytes
        if self._sparse_bytes > self._limits.unpacked_bytes:
            raise LimitExceeded(
                f"the sparse files of the layer have more than {self._limits.unpacked_bytes} bytes", "unpacked_bytes"
            )

"""Files that came with an archive or lie in a directory: found by name, read by range, never written anywhere.

Rule: names are looked up in what was listed, or beneath the directory without following links; nothing of an archive
ever becomes a path of this node. An archive is read by its headers only (`rootfs.tarheader`); how many there are, and
how long one may be, is bounded. Links inside an archive, which `docker save` makes for equal layers, lead to other
entries of it or nowhere.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cri_shim.errors import ContentRejected, InvalidRequest, LimitExceeded
from cri_shim.oci.shown import shown
from rootfs import tarheader
from rootfs.beneath import open_beneath
from rootfs.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootfs.tarheader import Entry

MOST_ENTRIES: Final = 100_000
_HEADER_BYTES: Final = 1 << 20
_NAME_BYTES: Final = 4096
_HOPS: Final = 8
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE_BYTES: Final = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Part:
    """A file: where it begins in the open *descriptor*, and its size."""

    descriptor: int
    offset: int
    size_bytes: int

    def pieces(self) -> Iterator[bytes]:
        """Give the content, in order.

        Raises:
            ContentRejected: the file has become shorter meanwhile.
        """
        at, left = self.offset, self.size_bytes
        while left:
            piece = os.pread(self.descriptor, min(left, _PIECE_BYTES), at)
            if not piece:
                raise ContentRejected("the archive ends before its last file does")
            yield piece
            at, left = at + len(piece), left - len(piece)

    def read(self, limit_bytes: int) -> bytes:
        """Return the content.

        Raises:
            LimitExceeded: it has more than *limit_bytes*.
        """
        if self.size_bytes > limit_bytes:
            raise LimitExceeded(f"a document of {self.size_bytes} bytes is larger than {limit_bytes} bytes")
        return b"".join(self.pieces())

    def begins_with(self, count: int) -> bytes:
        """Return the first *count* bytes, fewer where there are not so many."""
        return os.pread(self.descriptor, min(count, self.size_bytes), self.offset)


class Files(Protocol):
    """What an archive or a directory has."""

    def find(self, name: str) -> Part | None:
        """Return the file *name*, None when there is none."""

    def close(self) -> None:
        """Close what is open."""


def open_files(path: str) -> Files:
    """Open the archive, or the directory, at *path*. For a thread: an archive's headers are read.

    Raises:
        InvalidRequest: there is nothing to read there, or it is compressed.
        ContentRejected, LimitExceeded: it is no tar, or has too much of something.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(f"what is to be imported cannot be read: {error.strerror}") from error
    try:
        return _files(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _files(descriptor: int) -> Files:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        return _Directory(descriptor)
    if not stat.S_ISREG(mode):
        raise InvalidRequest("what is to be imported is neither a file nor a directory")
    return _Tar(descriptor)


class _Directory:
    def __init__(self, descriptor: int) -> None:
        self._root = descriptor
        self._open: dict[str, int] = {}

    def find(self, name: str) -> Part | None:
        found = self._open.get(name)
        if found is None:
            try:
                found = self._opened(os.fsencode(name))
            except OSError:
                return None
            self._open[name] = found
        status = os.fstat(found)
        return Part(found, 0, status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _opened(self, name: bytes) -> int:
        parent, _, last = name.rpartition(b"/")
        directory = open_beneath(self._root, parent)
        try:
            return os.open(last, _READ, dir_fd=directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        for descriptor in (self._root, *self._open.values()):
            os.close(descriptor)


class _Tar:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parts: dict[str, Part] = {}
        self._links: dict[str, str] = {}
        start = os.pread(descriptor, 4, 0)
        if start.startswith((_GZIP, _ZSTD)):
            raise InvalidRequest("the archive is compressed: give it uncompressed (gunzip, zstd -d)")
        for entry, at in _entries(descriptor, os.fstat(descriptor).st_size):
            name = _plain(os.fsdecode(entry.name))
            if entry.kind == tarheader.REGULAR:
                self._parts[name] = Part(descriptor, at, entry.size_bytes)
            elif entry.kind == tarheader.SYMLINK:
                self._links[name] = _plain(posixpath.join(posixpath.dirname(name), os.fsdecode(entry.link)))
            elif entry.kind == tarheader.LINK:
                self._links[name] = _plain(os.fsdecode(entry.link))

    def find(self, name: str) -> Part | None:
        name = _plain(name)
        for _ in range(_HOPS):
            if (part := self._parts.get(name)) is not None or name not in self._links:
                return part
            name = self._links[name]
        return None

    def close(self) -> None:
        os.close(self._descriptor)


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _entries(descriptor: int, size_bytes: int) -> Iterator[tuple[Entry, int]]:
    """Give every entry and where its content begins."""
    at, count = 0, 0
    extended: list[Entry] = []
    records: dict[bytes, bytes] = {}
    while at + tarheader.BLOCK_BYTES <= size_bytes:
        block = os.pread(descriptor, tarheader.BLOCK_BYTES, at)
        if not any(block):
            return
        entry, at = tarheader.parse_header(block, 0), at + tarheader.BLOCK_BYTES
        count += 1
        if count > MOST_ENTRIES:
            raise LimitExceeded(f"the archive has more than {MOST_ENTRIES} entries")
        if entry.kind in tarheader.EXTENSIONS:
            data = _extension(descriptor, entry, at)
            if entry.kind == tarheader.PAX:
                records = tarheader.parse_pax(data, Limits())
            elif entry.kind in (tarheader.GNU_NAME, tarheader.GNU_LINK):
                entry.name = data.partition(b"\0")[0]
                extended.append(entry)
        else:
            _settle(entry, extended, records)
            extended, records = [], {}
            if max(len(entry.name), len(entry.link)) > _NAME_BYTES:
                raise LimitExceeded(f"a name in the archive is longer than {_NAME_BYTES} bytes")
            yield entry, at
        at += entry.stored_bytes + -entry.stored_bytes % tarheader.BLOCK_BYTES


def _extension(descriptor: int, entry: Entry, at: int) -> bytes:
    if entry.stored_bytes > _HEADER_BYTES:
        raise LimitExceeded(f"an extended header of the archive is longer than {_HEADER_BYTES} bytes")
    return os.pread(descriptor, entry.stored_bytes, at)


def _settle(entry: Entry, extended: list[Entry], records: dict[bytes, bytes]) -> None:
    """Put what the extended headers say over the entry's own fields."""
    if records:
        tarheader.merge_pax(entry, records)
    for one in extended:
        if one.kind == tarheader.GNU_NAME:
            entry.name = one.name
        else:
            entry.link = one.name
    tarheader.settle_kind(entry)
    if entry.kind in tarheader.HEADER_ONLY:
        entry.size_bytes = entry.stored_bytes = 0
    if entry.size_bytes < 0 or b"\0" in entry.name:
        raise ContentRejected(f"the archive has an entry that cannot be: {shown(os.fsdecode(entry.name))}")

"""Whether a layer on the disk is still what was unpacked: every file, and what the tar said of it.

The record of the tar (`rootfs.tarsplit`) and the files make the tar again; its digest must be the diff ID, and what it
says of each entry must be so in the tree: kind, size, mode, owner, modification time, attributes, target, device. What
no entry speaks of is found by a walk. A quick look reads no file: it takes the record at its word, whose own digest
stands in the seal.

Rule: what could not be applied when the layer was unpacked (`Applied.skipped`) is not missed now. An inode that several
entries describe is as the last of them says. Marks of opaque directories are `trusted.*`, which a confined child cannot
see: they are handed back for `unmarked`, which runs outside.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs.assemble import Files, read_record
from rootfs.digest import Digest, new_hash
from rootfs.errors import ContentMismatch, LayerRejected, RootfsError
from rootfs.settle import open_standing
from rootfs.tarsplit import crc64_iso
from rootfs.tarstream import CHUNK_BYTES, TarStream
from rootfs.traits import Comparison

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rootfs.assemble import Piece
    from rootfs.limits import Limits

FLAWS: Final = 100
"""How many flaws of a layer are told one by one."""
PATHS: Final = 100_000
"""How many opaque directories of a layer are handed back."""

_ZEROS: Final = bytes(CHUNK_BYTES)
_READ_BYTES: Final = 256 << 10
_ENTRY_BYTES: Final = 4096  # what an entry costs the disk besides its content, about


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that is not as it was unpacked: *path* below the tree, b"" for all of it, and *what*, a few words."""

    path: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What was found in one layer.

    Attributes:
        flaws: what is wrong, `FLAWS` of it at most.
        more: how many flaws there are besides.
        compared: False where there is no record, and so nothing to compare with.
        entries: entries of the tar, or of the tree.
        read_bytes: of files.
        opaque: directories that must be marked as opaque.
    """

    flaws: tuple[Flaw, ...]
    more: int
    compared: bool
    entries: int
    read_bytes: int
    opaque: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What to compare a tree with.

    Attributes:
        diff_id: digest of its tar.
        record: digest of the record, None where the layer has none.
        skipped: kinds of what could not be applied (`Applied.skipped`).
        content: read the files, not only the record.
        bytes_per_second: how fast at most; 0 for as fast as it goes.
        privileged: owners could be set.
    """

    diff_id: Digest
    record: Digest | None
    skipped: frozenset[str]
    content: bool
    bytes_per_second: int
    privileged: bool


class Pace:
    """Holds up whoever reads more than *bytes_per_second* on average; 0 holds up nobody."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._due = time.monotonic()

    def spent(self, size_bytes: int) -> None:
        """Wait until *size_bytes* more are in order. What was not used in the past does not count."""
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now) + size_bytes / self._rate
            if self._due - now > 0.05:  # shorter ones would cost more than they hold up
                time.sleep(self._due - now)


class Flaws:
    """The flaws that were found. Those about an inode are withdrawn when a later entry describes it as it is."""

    def __init__(self) -> None:
        self._said: dict[tuple[bytes, str], None] = {}
        self._about: dict[int, Flaw] = {}
        self._more = 0

    def add(self, path: bytes, what: str) -> None:
        """Take one for good."""
        if len(self._said) < FLAWS:
            self._said[path, what] = None
        elif (path, what) not in self._said:
            self._more += 1

    def about(self, inode: int, path: bytes, what: str) -> None:
        """Take one about *inode* in the place of what was said of it before; nothing when *what* is empty."""
        if what:
            self._about[inode] = Flaw(path, what)
        else:
            self._about.pop(inode, None)

    def told(self) -> tuple[tuple[Flaw, ...], int]:
        """Return what to tell, and how much more there is."""
        found = [*(Flaw(*key) for key in self._said), *self._about.values()]
        return tuple(found[:FLAWS]), max(0, len(found) - FLAWS) + self._more

    def __bool__(self) -> bool:
        return bool(self._said or self._about)


class _Tar:
    """The tar of a layer, made of its record and its files; where a file is not what it was, of zeros."""

    def __init__(self, pieces: Iterator[Piece], root: int, order: Order, flaws: Flaws) -> None:
        self._pieces = pieces
        self._files = Files(root)
        self._order = order
        self._flaws = flaws
        self._content: Iterator[bytes] = iter(())
        self._hash = new_hash(order.diff_id.algorithm)
        self._pace = Pace(order.bytes_per_second)
        self.guessed = not order.content
        self.read_bytes = 0

    def close(self) -> None:
        self._files.close()

    @property
    def digest(self) -> Digest:
        return Digest.finished(self._hash)

    def read(self, size: int, /) -> bytes:
        """Give about *size* bytes, none at the end."""
        parts: list[bytes] = []
        have = 0
        while have < size and (part := self._some()):
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        if self._order.content:
            self._hash.update(data)
        return data

    def _some(self) -> bytes:
        while True:
            if part := next(self._content, b""):
                return part
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            if piece.raw:
                return piece.raw
            if not piece.size_bytes:
                self._pace.spent(_ENTRY_BYTES)
            self._content = self._file(piece)

    def _file(self, piece: Piece) -> Iterator[bytes]:
        """Give the content of a file, or as many zeros."""
        left = piece.size_bytes
        for part in self._stored(piece) if self._order.content and left else ():
            left -= len(part)
            self.read_bytes += len(part)
            yield part
            self._pace.spent(len(part))
        self.guessed = self.guessed or left > 0
        while left:
            yield _ZEROS[:left]
            left -= min(left, len(_ZEROS))

    def _stored(self, piece: Piece) -> Iterator[bytes]:
        """Give what the file has. That it is gone, or has another size, is seen where its entry is compared."""
        try:
            file = self._files.open(piece.name)
        except ContentMismatch:
            return
        except PermissionError:
            if self._order.privileged:
                self._flaws.add(piece.name, "it cannot be opened")
            return
        try:
            if os.fstat(file).st_size == piece.size_bytes:
                yield from self._summed(file, piece)
        finally:
            os.close(file)

    def _summed(self, file: int, piece: Piece) -> Iterator[bytes]:
        checksum, left = 0, piece.size_bytes
        try:
            while left and (data := os.read(file, min(left, _READ_BYTES))):
                checksum = crc64_iso(data, checksum)
                left -= len(data)
                yield data
        except OSError as error:
            self._flaws.add(piece.name, f"it cannot be read ({error.strerror})")
            return
        if checksum.to_bytes(8, "big") != piece.checksum:
            self._flaws.add(piece.name, "its content has changed")


class _RecordFile:
    """The record as it lies on the disk, digested."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hash = new_hash("sha256")

    def read(self, size: int, /) -> bytes:
        data = os.read(self._descriptor, size)
        self.hash.update(data)
        return data


def scrub(record: int, root: int, order: Order, limits: Limits) -> Scrubbed:
    """Compare the tree at the descriptor *root* with *order*; *record* is the descriptor of the record, -1 for none.

    Raises:
        RootfsError: it could not be found out, which says nothing of the layer.
        OSError: the same.
    """
    if order.record is None:
        return Scrubbed((), 0, compared=False, entries=0, read_bytes=0)
    if record < 0:
        return _hopeless("the record of its tar is gone")
    if _digest_of(record) != order.record:
        return _hopeless("the record of its tar has changed")
    os.lseek(record, 0, os.SEEK_SET)
    return _compare(record, root, order, limits)


def _hopeless(what: str) -> Scrubbed:
    return Scrubbed((Flaw(b"", what),), 0, compared=True, entries=0, read_bytes=0)


def _digest_of(record: int) -> Digest:
    file = _RecordFile(record)
    while file.read(_READ_BYTES):
        pass
    return Digest.finished(file.hash)


def _compare(record: int, root: int, order: Order, limits: Limits) -> Scrubbed:
    flaws = Flaws()
    tar = _Tar(read_record(_RecordFile(record)), root, order, flaws)
    stream = TarStream(tar, limits)
    comparison = Comparison(root, stream, order, flaws, limits)
    try:
        while (entry := stream.next()) is not None:
            comparison.take(entry)
        stream.finish()
        comparison.finish()
    except LayerRejected as error:
        flaws.add(b"", f"the record of its tar cannot be used: {error}")
    finally:
        comparison.close()
        tar.close()
    if not tar.guessed and not flaws and tar.digest != order.diff_id:
        flaws.add(b"", f"every file is as its record says, but that is the record of {tar.digest}")
    told, more = flaws.told()
    opaque = comparison.opaque
    if len(opaque) > PATHS:
        raise RootfsError(f"the layer has more than {PATHS} opaque directories, which is too many to look at")
    return Scrubbed(told, more, compared=True, entries=stream.entries, read_bytes=tar.read_bytes, opaque=opaque)


def unmarked(root: int, paths: Iterable[bytes], attribute: bytes) -> tuple[Flaw, ...]:
    """Return which of the directories *paths* of the tree *root* have lost their opaque mark *attribute*.

    Raises:
        OSError: the kernel's own answer.
    """
    found: list[Flaw] = []
    for path in paths:
        directory = open_standing(root, path)
        if directory < 0:
            continue  # it was seen when its entry was compared
        try:
            if not _has(directory, attribute):
                found.append(Flaw(path, "it is not marked as opaque any more"))
        finally:
            os.close(directory)
    return tuple(found[:FLAWS])


def _has(directory: int, attribute: bytes) -> bool:
    return os.fsdecode(attribute) in os.listxattr(directory)

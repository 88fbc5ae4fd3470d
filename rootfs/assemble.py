"""The tar of a layer made again, byte for byte, from its files and the record of everything else (`rootfs.tarsplit`).

Memory does not grow with the layer. The files are read inside the layer's tree and nowhere else, links in the names of
their directories followed there; each is compared with its checksum, so a file that has changed is named. Whoever
needs to be sure compares the digest of the whole as well: a checksum of eight bytes is no proof against intent.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from binascii import a2b_base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs.beneath import open_in_root
from rootfs.compression import decompress
from rootfs.digest import Digest, new_hash
from rootfs.errors import ContentMismatch, LayerRejected, RootfsError, shown
from rootfs.leaf import READ
from rootfs.limits import Limits
from rootfs.names import clean
from rootfs.tarsplit import crc64_iso

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootfs.compression import Reader

LINE_BYTES: Final = 4 << 20
"""The longest line of a record that is read: the longest that is written has less than half."""

_READ_BYTES: Final = 256 << 10
_SEGMENT: Final = 2
_ENTRY: Final = 1
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class Piece:
    """A line of a record: bytes of the tar, or a file of *size_bytes* with the sum *checksum* to be put there."""

    raw: bytes
    name: bytes
    size_bytes: int
    checksum: bytes


def assemble(record: Reader, root: int) -> Iterator[bytes]:
    """Give the tar of the layer whose tree is open as *root*, in pieces.

    Args:
        record: the record, compressed as it lies beside the tree.
        root: descriptor of the tree; stays the caller's.

    Raises:
        ContentMismatch: a file is not the one that was unpacked; the message names it. Pieces of it were given.
        LayerRejected: the record is damaged.
        OSError: something could not be read.
    """
    files = Files(root)
    try:
        for piece in read_record(record):
            if piece.size_bytes:
                yield from files.content(piece)
            else:
                yield piece.raw
    finally:
        files.close()


def verify(record: Reader, root: int, diff_id: Digest) -> int:
    """Compare the tree at *root* with *diff_id* and return the bytes of the tar.

    Raises:
        ContentMismatch: a file differs, or the whole does; everything else as `assemble`.
    """
    found, size_bytes = new_hash(diff_id.algorithm), 0
    for piece in assemble(record, root):
        found.update(piece)
        size_bytes += len(piece)
    if Digest.finished(found) != diff_id:
        raise ContentMismatch(f"every file is as the record says, but that is the record of {Digest.finished(found)}")
    return size_bytes


def read_record(record: Reader) -> Iterator[Piece]:
    """Give what the lines of a record say.

    Raises:
        LayerRejected: it is damaged.
    """
    for number, line in enumerate(_lines(record), 1):
        try:
            yield _parsed(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise LayerRejected(f"line {number} of the record of the tar is damaged") from None


def _lines(record: Reader) -> Iterator[bytes]:
    stream = decompress(record, Limits())
    rest = b""
    while data := stream.read(_READ_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LINE_BYTES:
            raise LayerRejected(f"the record of the tar has a line of more than {LINE_BYTES} bytes")
        yield from whole
    if rest:
        raise LayerRejected("the record of the tar is cut off")


def _parsed(fields: dict[str, object]) -> Piece:
    kind, payload = fields["type"], fields.get("payload")
    raw = b"" if payload is None else a2b_base64(str(payload), strict_mode=True)
    if kind == _SEGMENT:
        return Piece(raw, b"", 0, b"")
    size = fields.get("size", 0)
    if kind != _ENTRY or not isinstance(size, int) or size < 0 or len(raw) != (8 if size else 0):
        raise ValueError
    return Piece(b"", _name(fields), size, raw)


def _name(fields: dict[str, object]) -> bytes:
    encoded = fields.get("name_raw")
    return str(fields["name"]).encode("utf-8") if encoded is None else a2b_base64(str(encoded), strict_mode=True)


class Files:
    """Files of the tree *root* by their names in the tar; the directory of the latest one stays open until `close`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._name: bytes | None = None
        self._directory = -1

    def close(self) -> None:
        """Close that directory; the root stays the caller's."""
        if self._directory >= 0:
            os.close(self._directory)
        self._directory, self._name = -1, None

    def content(self, piece: Piece) -> Iterator[bytes]:
        """Give the content of the file that *piece* names.

        Raises:
            ContentMismatch, OSError: as `assemble`.
        """
        file = self.open(piece.name)
        try:
            if os.fstat(file).st_size != piece.size_bytes:
                raise _differs(piece.name)
            left, checksum = piece.size_bytes, 0
            while left and (data := os.read(file, min(left, _READ_BYTES))):
                checksum = crc64_iso(data, checksum)
                left -= len(data)
                yield data
            if left or checksum.to_bytes(8, "big") != piece.checksum:
                raise _differs(piece.name)
        finally:
            os.close(file)

    def open(self, name: bytes) -> int:
        """Open the regular file *name*; the descriptor is the caller's.

        Raises:
            ContentMismatch, OSError: as `assemble`.
        """
        parent, _, base = clean(name).rpartition(b"/")
        try:
            if parent != self._name:
                self.close()
                self._directory, self._name = open_in_root(self._root, parent), parent
            file = os.open(base, READ, dir_fd=self._directory)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise _differs(name) from None
            raise
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise _differs(name)
        return file


def _differs(name: bytes) -> RootfsError:
    return ContentMismatch(f"the file {shown(name)} is not the one that was unpacked")

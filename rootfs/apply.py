"""A layer's compressed stream becomes a directory, and what was seen on the way becomes an `Applied`.

One pass: blob digest, decompression, diff ID, tar, files. Both digests cover everything that was read, also what
follows the end of the archive. Whatever goes wrong is a `RootfsError`; the directory is then the caller's to remove.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rootfs.compression import decompress
from rootfs.digest import Digest, new_hash
from rootfs.errors import LayerRejected, LimitExceeded, NoSpace, RootfsError, from_os_error, shown
from rootfs.tarsplit import REPLACED, Record, Recorder
from rootfs.tarstream import TarStream
from rootfs.tree import Tree

if TYPE_CHECKING:
    from rootfs.compression import Decompressed, Reader
    from rootfs.limits import Limits
    from rootfs.tarheader import Entry


@dataclass(frozen=True, slots=True)
class Applied:
    """What a layer was, and what of it could not be put on the disk.

    Attributes:
        diff_id: digest of the uncompressed tar, everything after its end marker included.
        diff_size_bytes: its length.
        blob: digest of the bytes as they arrived.
        blob_size_bytes: their number.
        compression: "none", "gzip" or "zstd".
        entries: entries of the tar.
        usage_bytes: bytes written to regular files, holes excluded.
        inodes: inodes made.
        whiteouts: whiteout devices that stand in the tree.
        opaque: directories to be marked opaque, relative to the root (b"" is the root itself), links resolved.
        implied: directories made without an entry of their own, the same way.
        skipped: what could not be applied, and how often: ("owner", 12), ("device", 1), ("xattr:user", 3).
        record: what became of the record of the tar (`rootfs.tarsplit`); None when none was wanted.
    """

    diff_id: Digest
    diff_size_bytes: int
    blob: Digest
    blob_size_bytes: int
    compression: str
    entries: int
    usage_bytes: int
    inodes: int
    whiteouts: int
    opaque: tuple[bytes, ...]
    implied: tuple[bytes, ...]
    skipped: tuple[tuple[str, int], ...]
    record: Record | None = None


class _Blob:
    """The bytes as they arrive, counted and digested."""

    __slots__ = ("_source", "hash", "size_bytes")

    def __init__(self, source: Reader, algorithm: str) -> None:
        self._source = source
        self.hash = new_hash(algorithm)
        self.size_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Read from the source."""
        try:
            data = self._source.read(size)
        except OSError as error:
            raise RootfsError(f"the blob cannot be read ({error.strerror})") from error
        self.hash.update(data)
        self.size_bytes += len(data)
        return data


class _Layer:
    """The tar, counted, digested and kept within the limits. One that is not compressed is digested as the blob is."""

    __slots__ = ("_blob", "_is_blob", "_limits", "_source", "hash", "size_bytes")

    def __init__(self, blob: _Blob, source: Decompressed, limits: Limits, algorithm: str) -> None:
        self._blob = blob
        self._source = source
        self._limits = limits
        self._is_blob = source.compression == "none" and algorithm == blob.hash.name
        self.hash = blob.hash if self._is_blob else new_hash(algorithm)
        self.size_bytes = 0

    @property
    def compression(self) -> str:
        """What the blob was compressed with."""
        return self._source.compression

    def read(self, size: int, /) -> bytes:
        """Read from the decompressed stream."""
        data = self._source.read(size)
        if not self._is_blob:
            self.hash.update(data)
        self.size_bytes += len(data)
        if self.size_bytes > self._limits.unpacked_bytes:
            raise LimitExceeded(f"the layer has more than {self._limits.unpacked_bytes} bytes", "unpacked_bytes")
        if self.size_bytes > max(self._limits.ratio_floor_bytes, self._limits.ratio * self._blob.size_bytes):
            raise LimitExceeded(f"the layer is compressed more than {self._limits.ratio} times", "ratio")
        return data


def apply_layer(
    source: Reader,
    root_fd: int,
    *,
    limits: Limits,
    privileged: bool,
    plain: bool = False,
    algorithm: str = "sha256",
    diff_algorithm: str = "sha256",
    record_fd: int = -1,
) -> Applied:
    """Unpack a layer into the empty directory *root_fd*, in overlay form.

    The umask of the process is 0 meanwhile. No file outside of the directory is opened, and nothing is imported.

    Args:
        source: the layer as it was delivered.
        root_fd: a descriptor of the directory, which belongs to this process and which nobody else changes.
        limits: what it may cost.
        privileged: owners, devices and capabilities are applied; otherwise they are only counted.
        plain: the media type says that the layer is not compressed, so it is not looked at whether it is.
        algorithm: of the digest of *source*.
        diff_algorithm: of the digest of the tar.
        record_fd: an empty file, open for writing, for the record of the tar; -1 for none.

    Raises:
        LayerRejected: the layer is corrupt, or wants something that a layer may not do.
        LimitExceeded: it goes over one of *limits*.
        NoSpace: the node has no room for it.
        RootfsError: the node failed in another way, or *source* did.
    """
    before = os.umask(0)
    try:
        blob = _Blob(source, algorithm)
        layer = _Layer(blob, decompress(blob, limits, plain=plain), limits, diff_algorithm)
        record = Recorder(record_fd, limits.tar_split_bytes) if record_fd >= 0 else None
        stream = TarStream(layer, limits, record)
        tree = Tree(root_fd, stream, limits, privileged=privileged)
        return _unpack((blob, layer), stream, tree, record)
    except MemoryError as error:
        raise NoSpace("out of memory") from error
    finally:
        os.umask(before)


def _unpack(read: tuple[_Blob, _Layer], stream: TarStream, tree: Tree, record: Recorder | None) -> Applied:
    blob, layer = read
    try:
        _put_all(stream, tree)
        stream.finish()
        tree.finish()
        recorded = None if record is None else record.finish(REPLACED if tree.replaced else "")
    except OSError as error:
        raise from_os_error(error).within("finishing the directories") from error
    finally:
        tree.close()
    return Applied(
        diff_id=Digest.finished(layer.hash),
        diff_size_bytes=layer.size_bytes,
        blob=Digest.finished(blob.hash),
        blob_size_bytes=blob.size_bytes,
        compression=layer.compression,
        entries=stream.entries,
        usage_bytes=tree.usage_bytes,
        inodes=tree.inodes,
        whiteouts=tree.whiteouts,
        opaque=tree.opaque,
        implied=tree.implied,
        skipped=tuple(sorted(tree.skipped.items())),
        record=recorded,
    )


def _put_all(stream: TarStream, tree: Tree) -> None:
    """Write entry after entry; an error names the one that it is about."""
    entry: Entry | None = None
    try:
        while entry := stream.next():
            tree.again = False
            tree.put(entry)
            stream.end_entry(entry, again=tree.again)
    except RootfsError as error:
        raise error.within(_step(entry, stream)) from error.__cause__
    except OSError as error:
        raise from_os_error(error).within(_step(entry, stream)) from error
    except (ValueError, OverflowError) as error:  # nothing known leads here; a value out of the layer must be behind it
        raise LayerRejected("a value that cannot be used").within(_step(entry, stream)) from error


def _step(entry: Entry | None, stream: TarStream) -> str:
    return f"entry {shown(entry.name)}" if entry is not None else f"entry {stream.entries + 1}"

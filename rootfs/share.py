"""A new layer and the same layer in another store: files of ours exchanged for theirs, so that each byte lies once.

The tree was made and proved by the unpacker. What the other store has is believed in nothing: a file of it takes the
place of ours when owner, mode, time of change, attributes and every byte are equal, by one more name for its inode
(link), or where that cannot be, by sharing its extents (reflink; the kernel compares). Everything else stays ours.

Rule: the other tree is read and linked, never written; what is shared belongs to both, so nothing here or later may
change it but by taking the name away. Directories, links and nodes are ours always. Both trees are hostile: every path
is resolved beneath, without links, and no recursion.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs.beneath import open_beneath
from rootfs.duplicate import attributes
from rootfs.failpoints import failpoint
from rootfs.leaf import READ

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES: Final = 1 << 20
_TEMPORARY: Final = b".cri-shim-shared"
# What says that this one file cannot be shared: it must not change, has too many names, or we may not.
_NOT_THIS: Final = frozenset({errno.EMLINK, errno.EPERM, errno.EACCES, errno.EEXIST})
_NOT_HERE: Final = frozenset({errno.EXDEV, errno.EOPNOTSUPP})
# linux/fs.h: FIDEDUPERANGE of one range into one file; the head, then what is said about the file.
_DEDUPE: Final = 0xC0189436
_RANGE: Final = struct.Struct("=QQHHIqQQiI")
_DEDUPE_BYTES: Final = 16 << 20
_NO_SHARING: Final = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EPERM})

_Fate = tuple[tuple[bytes, bytes], tuple[int, int]]
"""Of an inode of ours with several names: directory and name of the file that it became, and its device and inode."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What of a layer lies once for two stores; files without content are not counted.

    Attributes:
        files: names of files whose content is shared.
        shared_bytes: their sizes; a file with two names counts twice.
        own_files: names of files that stayed ours alone.
        own_bytes: their sizes.
        way: "link", "reflink" or "copy", by what could be done between the two stores.
        why: why not better, "" for "link".
    """

    files: int
    shared_bytes: int
    own_files: int
    own_bytes: int
    way: str
    why: str


def share(own: int, other: int) -> Shared:
    """Exchange what is equal in the trees *own*, which only we have, and *other*, which somebody else has.

    Args:
        own: descriptor of a layer under staging, complete.
        other: descriptor of what should be the same layer; need not be readable itself (O_PATH).

    Raises:
        OSError: our own tree could not be read or written.
    """
    exchange = _Exchange(own, other)
    exchange.run()
    return exchange.result()


class _Exchange:
    """Walks our tree, with the other one beside it as far as it goes."""

    def __init__(self, own: int, other: int) -> None:
        self._own = own
        self._other = other
        self._fates: dict[int, _Fate | None] = {}
        self._counts = {True: [0, 0], False: [0, 0]}
        self._way = "link"
        self._why = ""
        if os.fstat(other).st_uid != os.geteuid():  # whose files they are could change ours through a link
            self._way, self._why = "reflink", "link: the other store is another user's"

    def result(self) -> Shared:
        """Return what came of it."""
        (files, shared_bytes), (own_files, own_bytes) = self._counts[True], self._counts[False]
        return Shared(files, shared_bytes, own_files, own_bytes, self._way, self._why)

    def run(self) -> None:
        """Go through all directories."""
        left = [b""]
        while left:
            path = left.pop()
            own = open_beneath(self._own, path)
            try:
                with _beside(self._other, path) as other:
                    left.extend(path + b"/" + name if path else name for name in self._directory(path, own, other))
            finally:
                os.close(own)

    def _directory(self, path: bytes, own: int, other: int) -> list[bytes]:
        """Exchange the files of one directory, whose times stay; return the directories in it."""
        before, below, changed = os.fstat(own), [], False
        with os.scandir(own) as entries:
            names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in names:
            if is_directory:
                below.append(name)
                continue
            status = os.stat(name, dir_fd=own, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_size:
                shared = self._file((own, other), (path, name), status)
                self._counts[shared][0] += 1
                self._counts[shared][1] += status.st_size
                changed = changed or shared
        if changed:
            os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))
        return below

    def _file(self, pair: tuple[int, int], place: tuple[bytes, bytes], status: os.stat_result) -> bool:
        """Exchange one name of ours; names of one inode stay names of one inode."""
        if self._way == "copy":
            return False
        if status.st_ino not in self._fates:
            return self._first(pair, place, status)
        fate = self._fates[status.st_ino]
        if fate is None or self._way != "link":
            return fate is not None
        with _beside(self._other, fate[0][0]) as first:
            return self._link(first, fate[0][1], (pair[0], place[1]), fate[1])

    def _first(self, pair: tuple[int, int], place: tuple[bytes, bytes], status: os.stat_result) -> bool:
        """Exchange the first name that is met of an inode of ours.

        Theirs stays open until it is linked: its number could be another file's by then.
        """
        with _opened(pair[1], place[1]) as theirs:
            equal = theirs >= 0 and _equal(theirs, pair[0], place[1], status)
            shared = equal and self._exchange(pair, place[1], os.fstat(theirs))
            if status.st_nlink > 1:
                self._fates[status.st_ino] = (place, _identity(os.fstat(theirs))) if shared else None
            return shared

    def _exchange(self, pair: tuple[int, int], name: bytes, theirs: os.stat_result) -> bool:
        if self._way == "link":
            try:
                return self._link(pair[1], name, (pair[0], name), _identity(theirs))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._way, self._why = "reflink", f"link: {error.strerror}"
        return self._clone(pair, name)

    def _link(self, other: int, theirs: bytes, ours: tuple[int, bytes], identity: tuple[int, int]) -> bool:
        """Put a link to *theirs* in the place of *ours*, if it still is what was compared."""
        own, name = ours
        if _identity(os.stat(name, dir_fd=own, follow_symlinks=False)) == identity:
            return True
        try:
            os.link(theirs, _TEMPORARY, src_dir_fd=other, dst_dir_fd=own, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NOT_THIS or error.errno == errno.ENOENT:
                return False
            raise
        if _identity(os.stat(_TEMPORARY, dir_fd=own, follow_symlinks=False)) != identity:
            os.unlink(_TEMPORARY, dir_fd=own)
            return False
        failpoint("share.rename")
        os.rename(_TEMPORARY, name, src_dir_fd=own, dst_dir_fd=own)
        return True

    def _clone(self, pair: tuple[int, int], name: bytes) -> bool:
        """Let our file have the extents of theirs; neither metadata nor anything that is read of it changes."""
        with _opened(pair[1], name) as theirs, _opened(pair[0], name) as ours:
            try:
                return _dedupe(theirs, ours, os.fstat(ours).st_size)
            except OSError as error:
                if error.errno not in _NO_SHARING:
                    raise
                self._way, self._why = "copy", f"{self._why}; reflink: {error.strerror}"
                return False


def _dedupe(theirs: int, ours: int, size_bytes: int) -> bool:
    at = 0
    while at < size_bytes:
        length = min(_DEDUPE_BYTES, size_bytes - at)
        answer = bytearray(_RANGE.pack(at, length, 1, 0, 0, ours, at, 0, 0, 0))
        fcntl.ioctl(theirs, _DEDUPE, answer)
        done, status = _RANGE.unpack(answer)[7:9]
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        if status or not done:
            return False  # they differ after all
        at += done
    return True


def _equal(theirs: int, own: int, name: bytes, status: os.stat_result) -> bool:
    """Tell whether the file open as *theirs* is equal to ours in everything that a container sees."""
    if _look(os.fstat(theirs)) != _look(status):
        return False
    with _opened(own, name) as ours:
        try:
            return attributes(ours) == attributes(theirs) and _same_bytes(ours, theirs, status.st_size)
        except OSError:
            return False  # one of them cannot be read: whatever is wrong, ours is kept


def _look(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns


def _same_bytes(first: int, second: int, size_bytes: int) -> bool:
    at = 0
    while at < size_bytes:
        piece = os.pread(first, _PIECE_BYTES, at)
        if not piece or piece != os.pread(second, len(piece), at):
            return False
        at += len(piece)
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _beside(other: int, path: bytes) -> Iterator[int]:
    """Give the directory *path* of the other tree, -1 where it cannot be had."""
    try:
        directory = open_beneath(other, path) if other >= 0 else -1
    except OSError:
        directory = -1
    try:
        yield directory
    finally:
        if directory >= 0:
            os.close(directory)


@contextlib.contextmanager
def _opened(directory: int, name: bytes) -> Iterator[int]:
    """Give a regular file of a directory, open for reading; -1 where it cannot be had."""
    descriptor = -1
    with contextlib.suppress(OSError):
        if directory >= 0 and stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            descriptor = os.open(name, READ, dir_fd=directory)
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)

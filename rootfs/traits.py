"""What a tar says of an entry, and what stands in the tree in its place. Nothing here writes.

It mirrors `rootfs.tree`, for a tree that is complete: names are resolved as they were when it was made, as a layer that
has replaced anything of its own has no record to compare it with.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.beneath import DIRECTORY, open_beneath
from rootfs.errors import LayerRejected, LimitExceeded, RootfsError, shown
from rootfs.leaf import READ, has_default_acl
from rootfs.names import clean
from rootfs.overlay import PRIVATE_PREFIXES
from rootfs.parents import Missing, Parents, is_whiteout
from rootfs.settle import standing
from rootfs.tarheader import BLOCK, CHAR, FIFO, LINK, REGULAR, SYMLINK, Entry
from rootfs.tarheader import DIRECTORY as DIRECTORY_KIND
from rootfs.whiteout import PREFIX, Mark, mark_of
from rootfs.xattrs import CAPABILITY, DEFAULT_ACL, is_wanted, namespace_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootfs.limits import Limits
    from rootfs.scrub import Flaws, Order
    from rootfs.tarstream import TarStream

SUSPECTS: Final = 100_000
"""Flaws about inodes that may still be withdrawn, and whiteouts that may still be accounted for."""

_KINDS: Final = {
    REGULAR: (stat.S_IFREG, "regular file"),
    DIRECTORY_KIND: (stat.S_IFDIR, "directory"),
    SYMLINK: (stat.S_IFLNK, "symbolic link"),
    CHAR: (stat.S_IFCHR, "character device"),
    BLOCK: (stat.S_IFBLK, "block device"),
    FIFO: (stat.S_IFIFO, "pipe"),
}
_LINKS: Final = 40  # as the kernel has it
_SECOND: Final = 1_000_000_000
_LATE_SECONDS: Final = 1 << 31  # some file systems hold no later time
_SETS_ID: Final = stat.S_ISUID | stat.S_ISGID
_READ_BYTES: Final = 256 << 10
_ACL: Final = b"system.posix_acl_"
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says something of this process, not of the layer."""


class Comparison:
    """Compares entry after entry, in the order of the tar, with the tree *root*; *stream* gives their content.

    Attributes:
        opaque: after `finish`, the directories that must be marked as opaque.
    """

    def __init__(self, root: int, stream: TarStream, order: Order, flaws: Flaws, limits: Limits) -> None:
        self._root = root
        self._stream = stream
        self._order = order
        self._flaws = flaws
        self._parents = Parents(root, limits, _make_nothing, self._climb)
        self._known: set[int] = set()
        self._above: set[bytes] = {b""}
        self._opaque: set[bytes] = set()
        self._hidden: list[bytes] = []
        self._whiteouts: list[bytes] = []
        self._replaced: set[bytes] = set()  # had a whiteout: below it nothing was hidden again
        self._given: dict[int, set[bytes]] = {}
        self._suspects = 0
        self._inherits_acl = has_default_acl(root)
        self.opaque: tuple[bytes, ...] = ()

    def close(self) -> None:
        """Give descriptors back."""
        self._parents.close()

    def take(self, entry: Entry) -> None:
        """Compare *entry*, whose content the stream is about to give.

        Raises:
            OSError, RootfsError: it could not be compared.
        """
        path = clean(entry.name)
        try:
            self._take(entry, path)
        except PermissionError:
            if self._order.privileged:
                self._flaws.add(path, "it cannot be looked at")
        except OSError as error:
            if error.errno in _OURS:
                raise
            self._flaws.add(path, f"it cannot be looked at ({error.strerror})")

    def _take(self, entry: Entry, path: bytes) -> None:
        parent, _, base = path.rpartition(b"/")
        if PREFIX in path and self._mark(parent, base):
            return
        if not base:
            return
        if entry.kind == CHAR and entry.major == entry.minor == 0:
            self._whiteout(parent, base)
            return
        found = self._find(parent, base)
        if found is None:
            if not (entry.kind in (CHAR, BLOCK) and "device" in self._order.skipped):
                self._flaws.add(path, "it is gone")
            return
        directory, here, status = found
        self._know(here)
        self._suspect(status.st_ino, here, self._differs(entry, directory, base, status))
        if entry.sparse is not None and self._order.content:
            self._sparse(entry, directory, base, here)

    def finish(self) -> None:
        """Look for what no entry spoke of, and for whiteouts that nothing accounts for.

        Raises:
            OSError, RootfsError: that could not be done.
        """
        self._check_root()
        self.opaque = tuple(sorted(self._opaque | standing(self._root, self._hidden)))
        for path in set(self.opaque) - standing(self._root, self.opaque):
            self._flaws.add(path, "it is gone")
        for path in self._whiteouts:
            if not self._is_below_a_hidden_one(path):
                self._flaws.add(path, "its whiteout is gone")
        self._strays()

    # Where things are

    def _find(self, parent: bytes, base: bytes) -> tuple[int, bytes, os.stat_result] | None:
        place = self._place(parent)
        if place is None:
            return None
        directory, above = place
        try:
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return directory, above + b"/" + base if above else base, status

    def _place(self, parent: bytes) -> tuple[int, bytes] | None:
        try:
            place = self._parents.get(parent, Missing.GIVE_UP)
        except (LayerRejected, LimitExceeded):
            return None
        if place is not None and place[1] not in self._above:
            self._climb(place[1])
        return place

    def _climb(self, path: bytes) -> None:
        while path not in self._above:
            self._above.add(path)
            path = path.rpartition(b"/")[0]

    def _know(self, path: bytes) -> None:
        self._known.add(hash(path))

    def _suspect(self, inode: int, path: bytes, what: str) -> None:
        if what:
            self._count()
        self._flaws.about(inode, path, what)

    def _count(self) -> None:
        self._suspects += 1
        if self._suspects > SUSPECTS:
            raise RootfsError(f"more than {SUSPECTS} things differ, which is too many to look at")

    # Whiteouts

    def _mark(self, parent: bytes, base: bytes) -> bool:
        mark, hidden = mark_of(parent, base)
        if mark is Mark.HIDE:
            self._whiteout(parent, hidden)
        elif mark is Mark.OPAQUE:
            place = self._place(parent)
            self._opaque.add(parent if place is None else place[1])
        return mark is not Mark.NONE

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        found = self._find(parent, base)
        path = parent + b"/" + base if parent else base
        if found is None:
            if "whiteout" not in self._order.skipped:
                self._count()
                self._whiteouts.append(path)
            return
        if is_whiteout(found[2]):
            self._know(found[1])
        elif stat.S_ISDIR(found[2].st_mode):
            self._count()
            self._hidden.append(found[1])
        else:
            self._count()
            self._replaced.add(found[1])

    def _is_below_a_hidden_one(self, path: bytes) -> bool:
        """Tell whether a whiteout at *path* would have nothing to hide, so that there need be none."""
        followed = 0
        while path:
            path = path.rpartition(b"/")[0]
            if path in self.opaque:
                return True
            above, _, base = path.rpartition(b"/")
            found = self._find(above, base) if base else None
            if found is None:
                continue
            if is_whiteout(found[2]) or found[1] in self.opaque or found[1] in self._replaced:
                return True
            if stat.S_ISLNK(found[2].st_mode) and followed < _LINKS:  # what it leads to may be hidden
                followed += 1
                path = _target(found[0], found[1]) + b"/."
        return False

    # Traits

    def _check_root(self) -> None:
        """The root has no entry that counts: its group, and whether others inherit it, are the store's own."""
        status = os.fstat(self._root)
        mode = stat.S_IMODE(status.st_mode) & ~stat.S_ISGID
        if mode != 0o755 and not self._inherits_acl:
            self._flaws.add(b"", f"its mode is {mode:o} instead of 755")
        elif self._order.privileged and status.st_uid:
            self._flaws.add(b"", f"its owner is {status.st_uid} instead of 0")

    def _differs(self, entry: Entry, directory: int, base: bytes, status: os.stat_result) -> str:
        """Say what is not as *entry* has it, "" when all is."""
        if entry.kind == LINK:
            why = self._differs_from_target(entry, status)
        else:
            why = _kind_differs(entry, status) or _size_differs(entry, status)
            if not why and entry.kind == SYMLINK and os.readlink(base, dir_fd=directory) != entry.link:
                why = "its target has changed"
        return why or self._inode_differs(entry, status) or self._attributes_differ(entry, directory, base, status)

    def _differs_from_target(self, entry: Entry, status: os.stat_result) -> str:
        parent, _, base = clean(entry.link).rpartition(b"/")
        target = self._find(parent, base) if base else None
        same = target is not None and (target[2].st_dev, target[2].st_ino) == (status.st_dev, status.st_ino)
        return "" if same else f"it is no hard link to {shown(entry.link)} any more"

    def _inode_differs(self, entry: Entry, status: os.stat_result) -> str:
        owned = self._order.privileged and "owner" not in self._order.skipped
        if owned and (entry.uid, entry.gid) != (status.st_uid, status.st_gid):
            return f"its owner is {status.st_uid}:{status.st_gid} instead of {entry.uid}:{entry.gid}"
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISLNK(status.st_mode) and "mode" not in self._order.skipped:
            ignored = 0 if self._order.privileged else _SETS_ID
            if (mode ^ entry.mode) & ~ignored:
                return f"its mode is {mode:o} instead of {entry.mode:o}"
        return "" if _same_time(status.st_mtime_ns, entry.mtime_ns) else "its modification time has changed"

    def _attributes_differ(self, entry: Entry, directory: int, base: bytes, status: os.stat_result) -> str:
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return ""
        try:
            file = os.open(base, READ if stat.S_ISREG(status.st_mode) else DIRECTORY, dir_fd=directory)
        except PermissionError:
            return "it cannot be opened" if self._order.privileged else ""
        try:
            if stat.S_ISREG(status.st_mode) and entry.kind == LINK and "xattr:link" in self._order.skipped:
                return ""
            return self._values_differ(entry, file, status.st_ino)
        except OSError as error:
            return f"its attributes cannot be read ({error.strerror})"
        finally:
            os.close(file)

    def _values_differ(self, entry: Entry, file: int, inode: int) -> str:
        names = {os.fsencode(name) for name in os.listxattr(file)}
        if entry.xattrs:
            self._given.setdefault(inode, set()).update(name for name, _ in entry.xattrs)
            self._inherits_acl = self._inherits_acl or any(name == DEFAULT_ACL for name, _ in entry.xattrs)
        for name, value in entry.xattrs:
            if self._is_checked(name) and (name not in names or os.getxattr(file, name) != value):
                return f"its attribute {shown(name)} has changed"
        more = sorted(name for name in names - self._given.get(inode, set()) if self._is_foreign(name))
        return f"it has the attribute {shown(more[0])}" if more else ""

    def _is_checked(self, name: bytes) -> bool:
        """Tell whether an attribute of the tar was set as it stood there; the kernel writes ACLs in its own way."""
        wanted = is_wanted(name, privileged=self._order.privileged) and namespace_of(name) not in self._order.skipped
        return wanted and not name.startswith(_ACL)

    def _is_foreign(self, name: bytes) -> bool:
        """Tell whether an attribute that no entry has says something about the file: others are the node's labels."""
        if name.startswith(_ACL):
            return not self._inherits_acl
        return name == CAPABILITY or (name.startswith(b"user.") and not name.startswith(PRIVATE_PREFIXES))

    # The content of sparse files, which is in the record

    def _sparse(self, entry: Entry, directory: int, base: bytes, path: bytes) -> None:
        try:
            file = os.open(base, READ, dir_fd=directory)
        except OSError:
            return  # it was said already that this is no such file
        try:
            if os.fstat(file).st_size == entry.size_bytes and not self._runs_are_equal(entry, file):
                self._flaws.add(path, "its content has changed")
        except OSError as error:
            self._flaws.add(path, f"it cannot be read ({error.strerror})")
        finally:
            os.close(file)

    def _runs_are_equal(self, entry: Entry, file: int) -> bool:
        at, equal = 0, True
        for offset, length in entry.sparse or ():
            equal = equal and _is_hole(file, at, offset)
            at = offset
            for piece in self._stream.pieces(length):  # also after a difference: what follows comes from the stream
                equal = equal and os.pread(file, len(piece), at) == piece
                at += len(piece)
        return equal and _is_hole(file, at, entry.size_bytes)

    # What no entry spoke of

    def _strays(self) -> None:
        left = [b""]
        while left:
            path = left.pop()
            try:
                directory = open_beneath(self._root, path)
            except PermissionError:
                continue  # an unprivileged process makes such
            try:
                left.extend(self._strays_in(directory, path))
            finally:
                os.close(directory)

    def _strays_in(self, directory: int, path: bytes) -> Iterator[bytes]:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                here = path + b"/" + name if path else name
                if hash(here) not in self._known and here not in self._above and here not in self._opaque:
                    self._flaws.add(here, "it is not of this layer")
                elif entry.is_dir(follow_symlinks=False):
                    yield here


def _target(directory: int, path: bytes) -> bytes:
    """Return the name of what the link *path*, in *directory*, leads to; no further out than the root."""
    target = os.readlink(path.rpartition(b"/")[2], dir_fd=directory)
    names: list[bytes] = [] if target.startswith(b"/") else path.split(b"/")[:-1]
    for name in target.split(b"/"):
        if name == b"..":
            names = names[:-1]
        elif name not in (b"", b"."):
            names.append(name)
    return b"/".join(names)


def _make_nothing(_directory: int, _base: bytes, _path: bytes) -> None:
    raise RootfsError("a directory is to be made where layers are only looked at")


def _kind_differs(entry: Entry, status: os.stat_result) -> str:
    kind, called = _KINDS[entry.kind]
    if stat.S_IFMT(status.st_mode) != kind:
        return f"it is no {called} any more"
    if entry.kind in (CHAR, BLOCK) and status.st_rdev != os.makedev(entry.major, entry.minor):
        return "its device number has changed"
    return ""


def _size_differs(entry: Entry, status: os.stat_result) -> str:
    if entry.kind == REGULAR and status.st_size != entry.size_bytes:
        return f"its size is {status.st_size} instead of {entry.size_bytes}"
    return ""


def _same_time(found_ns: int, wanted_ns: int) -> bool:
    """Compare times as well as the file system can hold them."""
    return found_ns in (wanted_ns, wanted_ns - wanted_ns % _SECOND) or wanted_ns >= _LATE_SECONDS * _SECOND


def _is_hole(file: int, start: int, end: int) -> bool:
    """Tell whether there are only zeros between two places of a file; holes cost nothing."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError:
            return True  # nothing but a hole up to the end
        data = os.pread(file, min(_READ_BYTES, max(0, end - start)), start)
        if data.count(0) != len(data):
            return False
        start += len(data) or end
    return True

"""Entries of a tar become files, directories, links and nodes: the only file that writes them.

Rule: everything is done in a directory that `parents` opened, to the last component of a name, which is never
followed; what stands there already is removed first and never written to. Owner comes before capability, both before
mode, times last; a directory belongs to the unpacker, with mode 0700, until the layer is complete, so that neither
DAC_OVERRIDE is needed nor a time is lost. Nothing recurses.

Whiteouts act on lower layers only, wherever they stand in the tar: a name that this layer has stays, and a directory
that it has as well becomes opaque (`rootfs.settle`); a device 0:0 is a whiteout, as overlayfs has it. Names and forms,
case by case, follow containerd but where it fails on what the specification allows. The entry of the root itself says
nothing, as in containerd, containers-storage and moby: an image whose layer was made in a private directory (`tar -C
"$(mktemp -d)" .`) would else shut everybody out of `/`.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.beneath import DIRECTORY
from rootfs.errors import LayerRejected, LimitExceeded, RootfsError
from rootfs.leaf import READ, change_mode_at, date_at, has_default_acl, link_at, write, write_all
from rootfs.names import clean
from rootfs.overlay import OPAQUE_USER
from rootfs.parents import Missing, Parents, is_whiteout
from rootfs.remove import remove_tree
from rootfs.settle import open_standing, settle
from rootfs.tarheader import BLOCK, CHAR, FIFO, LINK, REGULAR, SYMLINK, Entry
from rootfs.tarheader import DIRECTORY as DIRECTORY_KIND
from rootfs.whiteout import PREFIX, Mark, mark_of
from rootfs.xattrs import CAPABILITY, DEFAULT_ACL, is_wanted, namespace_of, set_xattr

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from rootfs.limits import Limits
    from rootfs.tarstream import TarStream

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LAST_ID: Final = (1 << 32) - 2  # the next one means "leave it" to chown
_LAST_MAJOR: Final = (1 << 12) - 1
_LAST_MINOR: Final = (1 << 20) - 1
_IMPLIED_MODE: Final = 0o755
_ODD: Final = (b"", b".")
"""How a last component begins that may have to be cleaned."""

_Attributes = tuple[int, int, int, int, int]
"""Of a directory: owner, group, mode, access and modification time in ns (-1: leave the times)."""


class Tree:
    """Writes entries beneath *root*, an empty directory.

    The umask must be 0 meanwhile. `finish` completes the directories; `close` gives descriptors back in any case.

    Attributes:
        usage_bytes: bytes written to regular files.
        inodes: inodes made.
        whiteouts: whiteouts made and not replaced; those that went with a removed directory still count.
        skipped: what could not be applied, and how often.
        opaque: directories that are to hide what lies below them, sorted; after `finish`.
        implied: directories that no entry described, sorted; after `finish`.
        replaced: something of this layer made room for something else of it.
        again: the latest entry is about a directory that an earlier one was about.
    """

    def __init__(self, root: int, stream: TarStream, limits: Limits, *, privileged: bool) -> None:
        self._root = root
        self._stream = stream
        self._limits = limits
        self._privileged = privileged
        self._parents = Parents(root, limits, self._imply)
        self._directories: dict[bytes, _Attributes] = {}
        self._implied: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._hidden: dict[bytes, tuple[int, int]] = {}  # has a whiteout and something else: owner of the whiteout
        self._remembered_bytes = 0
        self._born: tuple[int, int] | None = None  # owner and group of what is made here
        self._has_root = False  # it has an entry of its own
        self._mode_is_kept = not has_default_acl(root)  # a new file has the mode that it was made with
        self._writers = {
            DIRECTORY_KIND: self._directory,
            SYMLINK: self._symlink,
            LINK: self._link,
            CHAR: self._device,
            BLOCK: self._device,
            FIFO: self._fifo,
        }
        self.usage_bytes = 0
        self.inodes = 0
        self.whiteouts = 0
        self.skipped: dict[str, int] = {}
        self.opaque: tuple[bytes, ...] = ()
        self.implied: tuple[bytes, ...] = ()
        self.replaced = False
        self.again = False

    def put(self, entry: Entry) -> None:
        """Write *entry*, whose content `stream` is about to give.

        Raises:
            LayerRejected: it is something that a layer may not do.
            LimitExceeded: it lies too deep, or is one directory too many.
            OSError: the kernel's own answer.
        """
        name = entry.name
        parent, _, base = name.rpartition(b"/")
        place = self._parents.known(parent) if entry.kind == REGULAR and PREFIX not in name else None
        if place is not None and base[:1] not in _ODD and len(name) <= self._limits.depth:
            self._regular(entry, place, base)  # nearly always; what follows would come to the same
            return
        path = clean(name)
        if len(path) > self._limits.depth:
            self._check_depth(path)
        parent, _, base = path.rpartition(b"/")
        if PREFIX in path and self._mark(entry, parent, base):
            return
        if not base:
            self._put_root(entry)
            return
        place = self._parents.get(parent, Missing.MAKE)
        assert place is not None
        if entry.kind == REGULAR:
            self._regular(entry, place, base)
        else:
            self._writers[entry.kind](entry, path, place[0], place[1], base)

    def close(self) -> None:
        """Give descriptors back."""
        self._parents.close()

    def _skip(self, what: str) -> None:
        self.skipped[what] = self.skipped.get(what, 0) + 1

    def _check_depth(self, path: bytes) -> None:
        if path.count(b"/") >= self._limits.depth:
            raise LimitExceeded(f"it lies deeper than {self._limits.depth} directories", "depth")

    # Regular files, the hot path.

    def _regular(self, entry: Entry, place: tuple[int, bytes], base: bytes) -> None:
        directory = place[0]
        plain = self._mode_is_kept and entry.mode < 0o1000 and not entry.xattrs
        mode = entry.mode if plain else 0o600
        try:
            file = os.open(base, _NEW, mode, dir_fd=directory)
        except FileExistsError:
            self._clear(directory, base, _below(place[1], base))
            file = os.open(base, _NEW, mode, dir_fd=directory)
        try:
            self.inodes += 1
            if entry.stored_bytes or entry.sparse is not None:
                self._fill(file, entry)
            if plain:
                self._own(file, entry)
            else:
                self._describe(file, entry)
            os.utime(file, ns=(entry.atime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _fill(self, file: int, entry: Entry) -> None:
        if entry.sparse is None:
            content = self._stream.whole()
            if content is not None:
                write(file, content)
            else:
                write_all(file, self._stream.content())
        else:
            for offset, length in entry.sparse:
                if length:
                    os.lseek(file, offset, os.SEEK_SET)
                    write_all(file, self._stream.pieces(length))
            os.ftruncate(file, entry.size_bytes)
        self.usage_bytes += entry.stored_bytes

    def _own(self, file: int, entry: Entry) -> None:
        """Give an open file its owner, if that is not whom it belongs to already."""
        if (entry.uid, entry.gid) == self._born:
            return
        if self._born is None:
            self._learn(os.fstat(file))
        if self._wants_owner(entry, self._born):
            os.fchown(file, entry.uid, entry.gid)

    def _describe(self, file: int, entry: Entry) -> None:
        """Owner, attributes and mode of an open file, in the order in which none undoes another.

        Attributes but the capability come first: once the file is another's, they take DAC_OVERRIDE.
        """
        self._attach(file, entry, (pair for pair in entry.xattrs if pair[0] != CAPABILITY))
        self._own(file, entry)
        self._attach(file, entry, (pair for pair in entry.xattrs if pair[0] == CAPABILITY))
        os.fchmod(file, entry.mode)

    def _attach(self, file: int, entry: Entry, xattrs: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in xattrs:
            wanted = is_wanted(name, privileged=self._privileged)
            if not wanted or not set_xattr(file, name, value, privileged=self._privileged):
                self._skip(namespace_of(name))
            elif name == DEFAULT_ACL and entry.kind == DIRECTORY_KIND:
                self._mode_is_kept = False

    # Owners.

    def _learn(self, status: os.stat_result) -> None:
        """New inodes get the same owner everywhere: directories get theirs, and set-group-ID, only at the end."""
        self._born = (status.st_uid, status.st_gid)

    def _wants_owner(self, entry: Entry, now: tuple[int, int] | None) -> bool:
        """Tell whether the owner, who is *now*, is to be changed, and count it when it cannot be."""
        if not (0 <= entry.uid <= _LAST_ID and 0 <= entry.gid <= _LAST_ID):
            raise LayerRejected(f"its owner {entry.uid}:{entry.gid} is out of range")
        if (entry.uid, entry.gid) == now:
            return False
        if not self._privileged:
            self._skip("owner")
        return self._privileged

    def _own_at(self, directory: int, base: bytes, entry: Entry) -> None:
        """Give something that is not open, a link or a node, its owner."""
        if self._born is None:
            self._learn(os.stat(base, dir_fd=directory, follow_symlinks=False))
        if self._wants_owner(entry, self._born):
            os.chown(base, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)

    # Directories: made now, described at the end.

    def _put_root(self, entry: Entry) -> None:
        if entry.kind != DIRECTORY_KIND:
            raise LayerRejected("the root of the layer must stay a directory")
        for name, _ in entry.xattrs:
            self._skip(namespace_of(name))
        self.again, self._has_root = self._has_root, True

    def _directory(self, entry: Entry, _path: bytes, directory: int, above: bytes, base: bytes) -> None:
        here = _below(above, base)
        self._make_directory(directory, base, here)
        opened = os.open(base, DIRECTORY, dir_fd=directory)
        try:
            self._remember(here, entry, opened)
        except BaseException:
            os.close(opened)
            raise
        # Under its path without links: the name that the entry has may lead elsewhere by now.
        self._parents.keep(here, (opened, here))

    def _make_directory(self, directory: int, base: bytes, path: bytes) -> None:
        """Make a directory unless it is one."""
        try:
            os.mkdir(base, 0o700, dir_fd=directory)
        except FileExistsError:
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return
            self._clear(directory, base, path)
            os.mkdir(base, 0o700, dir_fd=directory)
        self.inodes += 1
        self._check_depth(path)

    def _imply(self, directory: int, base: bytes, path: bytes) -> None:
        """Make a directory that has no entry of its own, or not yet."""
        if base.startswith(PREFIX):  # only a link leads to such a name; exported again it would be a whiteout
            raise LayerRejected("one of its parents is a link to the name of a whiteout")
        self._make_directory(directory, base, path)
        self._note(path, self._directories)
        self._directories[path] = (0, 0, _IMPLIED_MODE, -1, -1)
        self._implied.add(path)

    def _remember(self, path: bytes, entry: Entry, opened: int) -> None:
        """Set the attributes of a directory, which may be long, and keep the rest for the end."""
        self._attach(opened, entry, entry.xattrs)
        if self._born is None and path:
            self._learn(os.fstat(opened))
        self._wants_owner(entry, self._born)
        self._note(path, self._directories)
        self.again = path in self._directories and path not in self._implied
        self._directories[path] = (entry.uid, entry.gid, entry.mode, entry.atime_ns, entry.mtime_ns)
        self._implied.discard(path)

    def _note(self, path: bytes, where: Container[bytes]) -> None:
        """Count *path*, which is about to be remembered, unless it is remembered *where* already."""
        if path in where:
            return
        self._remembered_bytes += len(path)
        if len(self._directories) + len(self._hidden) >= self._limits.directories:
            raise LimitExceeded(f"the layer has more than {self._limits.directories} directories", "directories")
        if self._remembered_bytes > self._limits.remembered_bytes:
            sentence = f"the paths of its directories have more than {self._limits.remembered_bytes} bytes"
            raise LimitExceeded(sentence, "remembered_bytes")

    # Links and nodes.

    def _symlink(self, entry: Entry, _path: bytes, directory: int, above: bytes, base: bytes) -> None:
        try:
            os.symlink(entry.link, base, dir_fd=directory)
        except FileExistsError:
            self._clear(directory, base, _below(above, base))
            os.symlink(entry.link, base, dir_fd=directory)
        self.inodes += 1
        for name, _ in entry.xattrs:
            self._skip(namespace_of(name))
        self._own_at(directory, base, entry)
        date_at(directory, base, entry)

    def _link(self, entry: Entry, _path: bytes, directory: int, above: bytes, base: bytes) -> None:
        target_parent, _, target_base = clean(entry.link).rpartition(b"/")
        found = self._parents.get(target_parent, Missing.GIVE_UP) if target_base else None
        if found is None or not self._may_link(found[0], target_base):
            raise LayerRejected("the target of its hard link is not in this layer, or a directory")
        if not link_at(found[0], target_base, directory, base):
            self._link_again(found, target_base, (directory, above), base)
        self._describe_at(directory, base, entry)

    def _may_link(self, directory: int, base: bytes) -> bool:
        try:
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return not stat.S_ISDIR(status.st_mode) and not is_whiteout(status)

    def _link_again(self, target: tuple[int, bytes], target_base: bytes, place: tuple[int, bytes], base: bytes) -> None:
        """Link over something that is there; that may be the same inode, but not the same name."""
        if (target[1], target_base) == (place[1], base):
            raise LayerRejected("it is a hard link to itself")
        old = os.stat(base, dir_fd=place[0], follow_symlinks=False)
        new = os.stat(target_base, dir_fd=target[0], follow_symlinks=False)
        if (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino):
            self._clear(place[0], base, _below(place[1], base))
            link_at(target[0], target_base, place[0], base)

    def _describe_at(self, directory: int, base: bytes, entry: Entry) -> None:
        """Put what the header of a hard link says on the inode, as containerd does; mostly it says the same again."""
        status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if self._wants_owner(entry, (status.st_uid, status.st_gid)):
            os.chown(base, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if entry.xattrs:
            self._attach_at(directory, base, entry, status)
        if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != entry.mode:
            self._change_mode(directory, base, entry.mode)
        date_at(directory, base, entry)

    def _attach_at(self, directory: int, base: bytes, entry: Entry, status: os.stat_result) -> None:
        """Attributes of a hard link: they are the inode's, and mostly there already."""
        try:
            file = os.open(base, READ, dir_fd=directory) if stat.S_ISREG(status.st_mode) else -1
        except PermissionError:
            file = -1
        if file < 0:
            self._skip("xattr:link")
            return
        try:
            self._attach(file, entry, entry.xattrs)
        finally:
            os.close(file)

    def _change_mode(self, directory: int, base: bytes, mode: int) -> None:
        if not change_mode_at(directory, base, mode):
            self._skip("mode")

    def _device(self, entry: Entry, path: bytes, directory: int, above: bytes, base: bytes) -> None:
        if not (0 <= entry.major <= _LAST_MAJOR and 0 <= entry.minor <= _LAST_MINOR):
            raise LayerRejected(f"its device number {entry.major}:{entry.minor} is out of range")
        if entry.kind == CHAR and entry.major == entry.minor == 0:
            self._hide(entry, path.rpartition(b"/")[0], base)
        elif self._privileged:
            kind = stat.S_IFCHR if entry.kind == CHAR else stat.S_IFBLK
            self._node(entry, (directory, above), base, kind, os.makedev(entry.major, entry.minor))
        else:
            self._skip("device")

    def _fifo(self, entry: Entry, _path: bytes, directory: int, above: bytes, base: bytes) -> None:
        self._node(entry, (directory, above), base, stat.S_IFIFO, 0)

    def _node(self, entry: Entry, place: tuple[int, bytes], base: bytes, kind: int, device: int) -> None:
        directory = place[0]
        try:
            os.mknod(base, kind | entry.mode, device, dir_fd=directory)
        except FileExistsError:
            self._clear(directory, base, _below(place[1], base))
            os.mknod(base, kind | entry.mode, device, dir_fd=directory)
        self.inodes += 1
        for name, _ in entry.xattrs:
            self._skip(namespace_of(name))
        self._own_at(directory, base, entry)
        status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if stat.S_IMODE(status.st_mode) != entry.mode:
            self._change_mode(directory, base, entry.mode)
        date_at(directory, base, entry)

    # Whiteouts.

    def _mark(self, entry: Entry, parent: bytes, base: bytes) -> bool:
        """Do what a whiteout says; False for an entry that is none."""
        mark, hidden = mark_of(parent, base)
        if mark is Mark.HIDE:
            self._hide(entry, parent, hidden)
        elif mark is Mark.OPAQUE:
            place = self._parents.get(parent, Missing.MAKE)
            assert place is not None
            self._opaque.add(place[1])
        elif mark is Mark.AUFS:
            self._skip("aufs")
        return mark is not Mark.NONE

    def _hide(self, entry: Entry, parent: bytes, base: bytes) -> None:
        """Hide *base* of the lower layers: unless it lies in what is hidden already, or this layer has it."""
        place = self._parents.get(parent, Missing.MAKE_UNLESS_HIDDEN)
        if place is None:
            return
        directory, above = place
        try:
            os.mknod(base, stat.S_IFCHR, 0, dir_fd=directory)
        except FileExistsError:
            if not is_whiteout(os.stat(base, dir_fd=directory, follow_symlinks=False)):
                self._keep_hidden(_below(above, base), (entry.uid, entry.gid))
            return
        except PermissionError:
            if self._privileged:
                raise
            self._skip("whiteout")  # before Linux 5.8 they take MKNOD
            return
        self.inodes += 1
        self.whiteouts += 1
        self._own_at(directory, base, entry)

    def _keep_hidden(self, path: bytes, owner: tuple[int, int]) -> None:
        """Remember that *path* has a whiteout, though something else stands there."""
        self._note(path, self._hidden)
        self._hidden[path] = owner

    def _clear(self, directory: int, base: bytes, path: bytes) -> None:
        """Remove what stands where something else is to be; *path* is its path without links."""
        status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        self.replaced = self.replaced or not is_whiteout(status)
        if stat.S_ISDIR(status.st_mode):
            self._parents.forget()
            failure = remove_tree(directory, base)
            if failure is not None:
                raise failure
            return
        if stat.S_ISLNK(status.st_mode):
            self._parents.forget()
        elif is_whiteout(status):
            self._keep_hidden(path, (status.st_uid, status.st_gid))
            self.whiteouts -= 1
        os.unlink(base, dir_fd=directory)

    # The end.

    def finish(self) -> None:
        """Complete the directories, the deepest first, and make of the whiteouts what they come to.

        Raises:
            OSError: the kernel's own answer.
        """
        opaque, implied, more = settle(
            self._root, self._hidden, self._opaque, self._implied, privileged=self._privileged
        )
        self.opaque, self.implied = tuple(sorted(opaque)), tuple(sorted(implied))
        self.whiteouts += more
        if not self._privileged:
            self._mark_opaque()
        for path in sorted(self._directories, reverse=True):
            directory = open_standing(self._root, path)
            if directory < 0:
                continue
            try:
                self._complete(directory, self._directories[path])
            finally:
                os.close(directory)

    def _mark_opaque(self) -> None:
        """Mark opaque directories here: once they have their modes, only a privileged process could."""
        for path in self.opaque:
            directory = open_standing(self._root, path)
            try:
                os.setxattr(directory, OPAQUE_USER, b"y")
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    raise RootfsError("the file system has no extended attributes for opaque directories") from error
                raise
            finally:
                os.close(directory)

    def _complete(self, directory: int, attributes: _Attributes) -> None:
        uid, gid, mode, atime_ns, mtime_ns = attributes
        if self._privileged:
            os.fchown(directory, uid, gid)
        os.fchmod(directory, mode)
        if mtime_ns >= 0:
            os.utime(directory, ns=(atime_ns, mtime_ns))


def _below(above: bytes, base: bytes) -> bytes:
    return above + b"/" + base if above else base

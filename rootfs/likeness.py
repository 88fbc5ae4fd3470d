"""Whether a form of a layer (`rootfs.forms`) is still what would be made of that layer now. Nothing here writes.

Files of a form are further names of the layer's own inodes, which whoever looks at that layer has read. What has an
inode of its own here, as a link could not be made or something was put in its place, is compared; so is every
directory, whose metadata are the layer's, or those that the layers below say.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from rootfs.beneath import open_beneath
from rootfs.duplicate import attributes
from rootfs.forms import is_opaque_mark, is_private
from rootfs.overlay import is_whiteout
from rootfs.scrub import Flaws, Pace, Scrubbed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootfs.forms import Look

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_BYTES: Final = 256 << 10
_ENTRY_BYTES: Final = 4096


def compare_form(
    source: int, form: int, *, bottom: bool, looks: Mapping[bytes, Look], content: bool, bytes_per_second: int = 0
) -> Scrubbed:
    """Compare the tree *form* with the one that `forms.make_form` makes of the tree *source*.

    Args:
        source: descriptor of the plain layer's tree.
        form: descriptor of the form's.
        bottom: whiteouts and opaque marks were left out.
        looks: directories that look otherwise, from `forms.inherited`.
        content: read files that are not the same inode.
        bytes_per_second: how fast at most; 0 for as fast as it goes.

    Raises:
        OSError: it could not be found out.
    """
    return _Likeness(source, form, looks, (bottom, content), Pace(bytes_per_second)).compare()


class _Likeness:
    """Walks both trees side by side."""

    def __init__(self, source: int, form: int, looks: Mapping[bytes, Look], how: tuple[bool, bool], pace: Pace) -> None:
        self._source, self._form, self._looks = source, form, looks
        self._bottom, self._content = how
        self._pace = pace
        self._flaws = Flaws()
        self._entries = self._read_bytes = 0

    def compare(self) -> Scrubbed:
        """Compare directory after directory."""
        left = [b""]
        while left:
            path = left.pop()
            source = open_beneath(self._source, path)
            try:
                form = open_beneath(self._form, path)
                try:
                    left.extend(self._directories(source, form, path))
                finally:
                    os.close(form)
            finally:
                os.close(source)
        told, more = self._flaws.told()
        return Scrubbed(told, more, compared=True, entries=self._entries, read_bytes=self._read_bytes)

    def _directories(self, source: int, form: int, path: bytes) -> list[bytes]:
        """Compare one directory; return the directories in it that both have."""
        self._compare_metadata(source, form, path)
        wanted, found = self._listed(source), set(map(os.fsencode, os.listdir(form)))
        below = []
        for name, status in wanted.items():
            here = path + b"/" + name if path else name
            self._entries += 1
            self._pace.spent(_ENTRY_BYTES)
            if name not in found:
                self._flaws.add(here, "it is gone")
            elif self._is_same(source, form, (name, here), status) and stat.S_ISDIR(status.st_mode):
                below.append(here)
        for name in found - wanted.keys():
            self._flaws.add(path + b"/" + name if path else name, "it is not of this layer")
        return below

    def _listed(self, source: int) -> dict[bytes, os.stat_result]:
        with os.scandir(source) as entries:
            listed = {os.fsencode(entry.name): entry.stat(follow_symlinks=False) for entry in entries}
        if not self._bottom:
            return listed
        return {name: status for name, status in listed.items() if not is_whiteout(status)}

    def _compare_metadata(self, source: int, form: int, path: bytes) -> None:
        """Compare two directories; one that looks otherwise is compared with that look."""
        look = self._looks.get(path)
        mine, its = attributes(form), attributes(source)
        wanted = os.fstat(source) if look is None else look.status
        if look is not None:
            its = {name: value for name, value in its.items() if is_private(name)} | dict(look.extended)
        elif self._bottom:
            its = {name: value for name, value in its.items() if not is_opaque_mark(name)}
        if what := _traits_differ(os.fstat(form), wanted):
            self._flaws.add(path, what)
        elif mine != its:
            self._flaws.add(path, "its attributes have changed")

    def _is_same(self, source: int, form: int, place: tuple[bytes, bytes], wanted: os.stat_result) -> bool:
        name, path = place
        found = os.stat(name, dir_fd=form, follow_symlinks=False)
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(wanted.st_mode):
            self._flaws.add(path, "it is of another kind")
            return False
        if stat.S_ISDIR(wanted.st_mode) or (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
        what = _traits_differ(found, wanted) or self._copy_differs(source, form, name, wanted)
        if what:
            self._flaws.add(path, what)
        return not what

    def _copy_differs(self, source: int, form: int, name: bytes, wanted: os.stat_result) -> str:
        if stat.S_ISLNK(wanted.st_mode):
            same = os.readlink(name, dir_fd=source) == os.readlink(name, dir_fd=form)
            return "" if same else "its target has changed"
        if not stat.S_ISREG(wanted.st_mode):
            return ""
        files: list[int] = []
        try:
            files.append(os.open(name, _READ, dir_fd=source))
            files.append(os.open(name, _READ, dir_fd=form))
            if attributes(files[0]) != attributes(files[1]):
                return "its attributes have changed"
            return "" if not self._content or self._are_equal(*files) else "its content has changed"
        finally:
            for file in files:
                os.close(file)

    def _are_equal(self, first: int, second: int) -> bool:
        while True:
            one, other = os.read(first, _READ_BYTES), os.read(second, _READ_BYTES)
            self._read_bytes += len(one)
            self._pace.spent(2 * len(one))
            if one != other:
                return False
            if not one:
                return True


def _traits_differ(found: os.stat_result, wanted: os.stat_result) -> str:
    """Say what differs of owner, mode, size and time."""
    if (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
        return f"its owner is {found.st_uid}:{found.st_gid} instead of {wanted.st_uid}:{wanted.st_gid}"
    if stat.S_IMODE(found.st_mode) != stat.S_IMODE(wanted.st_mode):
        return f"its mode is {stat.S_IMODE(found.st_mode):o} instead of {stat.S_IMODE(wanted.st_mode):o}"
    if stat.S_ISREG(wanted.st_mode) and found.st_size != wanted.st_size:
        return f"its size is {found.st_size} instead of {wanted.st_size}"
    if (stat.S_ISCHR(wanted.st_mode) or stat.S_ISBLK(wanted.st_mode)) and found.st_rdev != wanted.st_rdev:
        return "its device number has changed"
    return "" if found.st_mtime_ns == wanted.st_mtime_ns else "its modification time has changed"

"""Layers written by hand, entry by entry, so that a test says exactly what stands in them and what does not.

`tarfile` writes only; a directory gets an entry of its own when it is asked for, never by itself.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

MOMENT = 1_650_000_000
# A revision 2 capability set: cap_net_bind_service, effective and permitted.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


class LayerTar:
    """A tar in the making; paths as they stand in a layer, without a slash in front. Numbers count up: times differ."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape")  # noqa: SIM115 (bytes closes it)
        self._moment = MOMENT
        self.explicit: set[bytes] = set()

    def directory(self, name: str, mode: int = 0o755, uid: int = 0, gid: int = 0, **xattrs: bytes) -> LayerTar:
        return self._add(name, tarfile.DIRTYPE, mode, uid, gid, xattrs)

    def file(
        self,
        name: str,
        data: bytes = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        nanoseconds: int = 0,
        **xattrs: bytes,
    ) -> LayerTar:
        return self._add(name, tarfile.REGTYPE, mode, uid, gid, xattrs, data=data, nanoseconds=nanoseconds)

    def symlink(self, name: str, target: str, uid: int = 0, gid: int = 0) -> LayerTar:
        return self._add(name, tarfile.SYMTYPE, 0o777, uid, gid, {}, linkname=target)

    def hardlink(self, name: str, target: str) -> LayerTar:
        """A second name for *target*, told with the particulars of the first, as every archiver does."""
        first = self._tar.getmember(target)
        self._add(name, tarfile.LNKTYPE, first.mode, first.uid, first.gid, {}, linkname=target, like=first)
        return self

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> LayerTar:
        return self._add(name, tarfile.CHRTYPE, mode, 0, 0, {}, devmajor=major, devminor=minor)

    def fifo(self, name: str, mode: int = 0o600) -> LayerTar:
        return self._add(name, tarfile.FIFOTYPE, mode, 0, 0, {})

    def whiteout(self, name: str) -> LayerTar:
        parent, slash, last = name.rpartition("/")
        return self._add(f"{parent}{slash}.wh.{last}", tarfile.REGTYPE, 0o644, 0, 0, {})

    def opaque(self, name: str) -> LayerTar:
        return self._add(f"{name}/.wh..wh..opq", tarfile.REGTYPE, 0o644, 0, 0, {})

    def bytes(self) -> bytes:
        """The tar, closed."""
        self._tar.close()
        return self._bytes.getvalue()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path

    @property
    def implied(self) -> frozenset[bytes]:
        """Directories above entries that have no entry of their own; the root is one when it has none."""
        return frozenset(_above(self.explicit) - self.explicit)

    def _add(self, name, kind, mode, uid, gid, xattrs, data=b"", nanoseconds=0, like=None, **more) -> LayerTar:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.uid, member.gid, member.size = kind, mode, uid, gid, len(data)
        self._moment += 1
        member.mtime = self._moment
        for field, value in more.items():
            setattr(member, field, value)
        # A keyword cannot hold a dot: user__x stands for user.x. Bytes go through latin-1 untouched by tarfile's UTF-8.
        names = {key.replace("__", "."): value for key, value in xattrs.items()}
        member.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in names.items()
        }
        if like is not None:
            member.mtime, member.pax_headers = like.mtime, dict(like.pax_headers)
        if nanoseconds:
            member.pax_headers["mtime"] = f"{self._moment}.{nanoseconds:09d}"
        self._tar.addfile(member, io.BytesIO(data))
        self.explicit.add(name.encode("utf-8", "surrogateescape").removeprefix(b"./").rstrip(b"/"))
        return self


def times_open(layers: Iterable[LayerTar]) -> frozenset[bytes]:
    """Directories of the merged view, *layers* bottom first, whose time no entry sets: implied where they stand highest."""
    settled: set[bytes] = set()
    open_: set[bytes] = set()
    for layer in reversed(tuple(layers)):
        open_ |= layer.implied - settled
        settled |= layer.explicit | layer.implied
    return frozenset(open_)


def _above(paths: Iterable[bytes]) -> set[bytes]:
    """Every directory above *paths*, the root among them."""
    split = [path.split(b"/") for path in paths]
    return {b"/".join(parts[:count]) for parts in split for count in range(1, len(parts))} | {b""}

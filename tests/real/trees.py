"""Comparing two directory trees in everything that a container can see.

A tree is a dict from path (bytes, relative, b"" is the root itself) to `Entry`. Hard links are compared as groups of
paths that are one file, and as link counts where nothing outside of the tree may share the files.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
WHITEOUT = "whiteout"


@dataclass(frozen=True)
class Entry:
    """What one path is. Fields that a kind does not have keep their default."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    links: int = 1
    group: tuple[bytes, ...] = ()
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    content: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()


Tree = dict[bytes, Entry]


def read_tree(root: str | os.PathLike[str]) -> Tree:
    """Read everything below *root* and root itself."""
    base = os.fsencode(root)
    tree: Tree = {}
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    inodes: dict[bytes, tuple[int, int]] = {}
    for path in _walk(base):
        full = os.path.join(base, path) if path else base
        info = os.lstat(full)
        tree[path] = _entry(full, info)
        if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
            inodes[path] = (info.st_dev, info.st_ino)
            groups[inodes[path]].append(path)
    for path, inode in inodes.items():
        names = tuple(sorted(groups[inode]))
        tree[path] = replace(tree[path], group=names if len(names) > 1 else ())
    return tree


def differences(
    left: Tree, right: Tree, excepted: Callable[[bytes, str], bool] = lambda _path, _field: False
) -> list[str]:
    """Say, one line each, where *left* and *right* differ; *excepted* tells which (path, field) may."""
    found = []
    for path in sorted(left.keys() | right.keys()):
        if path not in right:
            found.append(f"{path!r}: only on the left ({left[path].kind})")
        elif path not in left:
            found.append(f"{path!r}: only on the right ({right[path].kind})")
        else:
            found.extend(_different(path, left[path], right[path], excepted))
    return found


def except_fields(*names: str, at: frozenset[bytes] | None = None) -> Callable[[bytes, str], bool]:
    """Except these fields, everywhere or at the paths of *at*."""
    return lambda path, field: field in names and (at is None or path in at)


def any_of(*exceptions: Callable[[bytes, str], bool]) -> Callable[[bytes, str], bool]:
    """Except what one of *exceptions* does."""
    return lambda path, field: any(exception(path, field) for exception in exceptions)


def _different(path: bytes, left: Entry, right: Entry, excepted: Callable[[bytes, str], bool]) -> Iterator[str]:
    for field in (field.name for field in fields(Entry)):
        one, other = getattr(left, field), getattr(right, field)
        if one != other and not excepted(path, field):
            shown = (oct(one), oct(other)) if field == "mode" else (repr(one), repr(other))
            yield f"{path!r}: {field} {shown[0]} != {shown[1]}"


def _walk(base: bytes) -> Iterator[bytes]:
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        yield path
        full = os.path.join(base, path) if path else base
        if stat.S_ISDIR(os.lstat(full).st_mode):
            waiting.extend(os.path.join(path, name) if path else name for name in os.listdir(full))


def _entry(full: bytes, info: os.stat_result) -> Entry:
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    is_device = kind in ("character device", "block device")
    if kind == "character device" and info.st_rdev == 0:
        kind = WHITEOUT
    is_directory = kind == "directory"
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=info.st_mtime_ns,
        size=0 if is_directory else info.st_size,
        links=1 if is_directory else info.st_nlink,
        device=(os.major(info.st_rdev), os.minor(info.st_rdev)) if is_device else (0, 0),
        target=os.readlink(full) if kind == "link" else b"",
        content=_hash(full) if kind == "file" else "",
        xattrs=tuple(
            (name, os.getxattr(full, name, follow_symlinks=False))
            for name in sorted(os.listxattr(full, follow_symlinks=False))
        ),
    )


def _hash(full: bytes) -> str:
    with open(full, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

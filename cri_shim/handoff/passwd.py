"""Who `config.User` is: names looked up in the image's own passwd and group, as runc's library does it.

The files are hostile: they are resolved with the image as the root of everything, read up to a bound, and a line that
is not one is passed over.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ContentRejected, LimitExceeded
from rootfs.beneath import open_in_root

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_BYTES: Final = 4 << 20
HIGHEST_ID: Final = (1 << 31) - 1

_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Identity:
    """Numbers that a process runs with; *home* is "/" where passwd names none."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def identity_of(spec: str, passwd: str, group: str) -> Identity:
    """Return what *spec* (`user`, `uid`, either with `:group` or `:gid`, or "") stands for in these files.

    Raises:
        ContentRejected: a name is not in them, or a number is too large.
    """
    wanted, _, wanted_group = spec.partition(":")
    user = _user(wanted, passwd)
    groups = list(_groups(group))
    if wanted_group:
        return Identity(user.uid, _gid(wanted_group, groups), (), user.home or "/")
    more = tuple(one.gid for one in groups if user.name and user.name in one.members)
    return Identity(user.uid, user.gid, more, user.home or "/")


def _user(wanted: str, passwd: str) -> _User:
    number = _number(wanted or "0")
    for user in _users(passwd):
        if user.uid == number if number is not None else user.name == wanted:
            return user
    if number is None:
        raise ContentRejected(f"the image's /etc/passwd has no user {wanted[:100]!a}, as which it wants to run")
    return _User("", number, 0, "")


def _gid(wanted: str, groups: list[_Group]) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    found = next((one.gid for one in groups if one.name == wanted), None)
    if found is None:
        raise ContentRejected(f"the image's /etc/group has no group {wanted[:100]!a}, as which it wants to run")
    return found


def _users(passwd: str) -> Iterator[_User]:
    for name, _, uid, gid, _, home, *_ in (line.split(":") for line in passwd.splitlines() if line.count(":") >= 5):
        numbers = _number(uid), _number(gid)
        if numbers[0] is not None and numbers[1] is not None:
            yield _User(name, numbers[0], numbers[1], home if home.startswith("/") else "")


def _groups(group: str) -> Iterator[_Group]:
    for name, _, gid, members, *_ in (line.split(":") for line in group.splitlines() if line.count(":") >= 3):
        number = _number(gid)
        if number is not None:
            yield _Group(name, number, tuple(members.split(",")))


def _number(text: str) -> int | None:
    """Return an id; None when *text* is no number."""
    if not text.isascii() or not text.isdigit():
        return None
    if len(text) > 10 or int(text) > HIGHEST_ID:
        raise ContentRejected(f"a user or group of the image has a number over {HIGHEST_ID}")
    return int(text)


def read_in_root(root: int, directory: bytes, name: bytes) -> str:
    """Return a text file of the tree *root*; "" when there is none.

    Links of the directory are followed within the tree, the file itself must not be one.

    Raises:
        LimitExceeded: it is larger than FILE_BYTES.
        OSError: it cannot be read.
    """
    try:
        above = open_in_root(root, directory)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        file = os.open(name, _FLAGS, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return ""
        raise
    finally:
        os.close(above)
    try:
        data = _read(file)
    finally:
        os.close(file)
    return data.decode("utf-8", "replace")


def _read(file: int) -> bytes:
    data = bytearray()
    while len(data) <= FILE_BYTES:
        try:
            part = os.read(file, FILE_BYTES + 1 - len(data))
        except IsADirectoryError:
            return b""
        if not part:
            return bytes(data)
        data += part
    raise LimitExceeded(f"a file of users or groups in the image has more than {FILE_BYTES} bytes")

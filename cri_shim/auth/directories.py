"""Who could put another file in the place of one: the directories on the way to it.

A file that only root can write is anybody's when anybody can rename it away. So every directory in which a name of the
way is looked up, symbolic links followed, must be of root or of this user and not writable by everybody, unless its
sticky bit keeps strangers from renaming what is not theirs. Whoever owns `/` (in a user namespace not root) is trusted,
for everything is his.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS: Final = 40
"""Symbolic links that are followed on one way, as many as the kernel follows."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a file must not be used, if it must not, and what else its owner should hear."""

    refusal: str = ""
    remark: str = ""


def judged(path: str, trusted_uids: frozenset[int]) -> Verdict:
    """Say who could replace the file at *path*.

    Raises:
        OSError: a directory cannot be looked at.
    """
    trusted = trusted_uids | {os.stat("/").st_uid}
    remark = ""
    for directory in dict.fromkeys(on_the_way(path)):
        found = os.stat(directory)
        if found.st_uid not in trusted:
            owner = f"user {found.st_uid}, neither root nor the user of this service"
            return Verdict(f"the directory {directory} on the way to it belongs to {owner}")
        if found.st_mode & stat.S_ISVTX:
            continue
        if found.st_mode & stat.S_IWOTH:
            return Verdict(f"everybody on this node can write the directory {directory} on the way to it")
        if found.st_mode & stat.S_IWGRP and found.st_gid not in {0, os.getegid()}:
            remark = f"group {found.st_gid} can write the directory {directory} on the way to it"
    return Verdict(remark=remark)


def on_the_way(path: str) -> Iterator[str]:
    """Give every directory in which a name is looked up to come to *path*."""
    left, at, links = os.path.abspath(path).split("/")[:0:-1], "/", 0
    while left:
        name = left.pop()
        if name == "..":
            at = os.path.dirname(at)
        elif name not in {"", "."}:
            yield at
            place = os.path.join(at, name)
            target = _target(place)
            if target is None:
                at = place
                continue
            links += 1
            if links > LINKS:
                return  # nor will the kernel open it
            at = "/" if target.startswith("/") else at
            left += target.split("/")[::-1]


def _target(place: str) -> str | None:
    try:
        return os.readlink(place)
    except OSError:
        return None

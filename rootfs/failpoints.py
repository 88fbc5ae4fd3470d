"""Failpoints: named places, one before every rename, sync and commit, where a test can make the worst happen.

Off, which they are unless the daemon is started with `CRI_SHIM_FAILPOINTS`, a failpoint is a call that looks at one
variable. On, it can kill everything (SIGKILL to the daemon, the helper and itself, as `kill -9` at that instant), fail
as the kernel would, or stand still, so that the disk can be cut off under it. The helper and its children inherit what
the daemon was given.

    layer.rename=kill;index.commit.put_image=errno:EIO;trace:/tmp/fifo;ingest.map.sync=pause@3

An entry is `NAME=ACTION`, from the hit N on with `@N`; `trace:PATH` writes a line `NAME PID` for every hit of any name
to a file or a FIFO that exists. Hits are counted over the daemon and its children, and apart from that over the helper
and its children.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
from dataclasses import dataclass, field
from typing import Final

from rootfs.errors import RootfsError

_COUNT: Final = struct.Struct("Q")
_ACTIONS: Final = ("kill", "pause", "errno")


@dataclass(frozen=True, slots=True)
class _Action:
    what: str
    error: int
    first: int
    slot: int


@dataclass(slots=True)
class _State:
    spelled: str = ""
    actions: dict[str, _Action] = field(default_factory=dict)
    trace: str = ""
    victims: tuple[int, ...] = ()
    counts: mmap.mmap | None = None


_on = False
_state = _State()


def failpoint(name: str) -> None:
    """Do what was asked for at *name*, as a rule nothing.

    Raises:
        OSError: that was asked for.
    """
    if _on:
        _hit(name)


def arm(spelled: str, victims: tuple[int, ...] = ()) -> None:
    """Turn on what *spelled* says; "" turns everything off.

    Args:
        spelled: entries, separated by semicolons (see the module).
        victims: processes that a kill takes along, besides this one.

    Raises:
        RootfsError: it cannot be read.
    """
    global _on  # noqa: PLW0603  # one variable is what a failpoint costs when it is off
    actions: dict[str, _Action] = {}
    trace = ""
    for entry in filter(None, spelled.split(";")):
        if entry.startswith("trace:"):
            trace = entry.removeprefix("trace:")
        else:
            name, _, action = entry.partition("=")
            actions[name] = _action(entry, action, len(actions))
    _state.spelled, _state.actions, _state.trace = spelled, actions, trace
    _state.victims = (*victims, os.getpid())
    _state.counts = mmap.mmap(-1, _COUNT.size * max(1, len(actions)))
    _on = bool(spelled)


def armed() -> tuple[str, tuple[int, ...]]:
    """Return what was given to `arm`, and the processes that a kill here takes along: for a process that is started."""
    return (_state.spelled, _state.victims) if _on else ("", ())


def _action(entry: str, text: str, slot: int) -> _Action:
    action, _, count = text.partition("@")
    what, _, which = action.partition(":")
    number = getattr(errno, which, 0) if which.startswith("E") else 0
    right = what in _ACTIONS and (what == "errno") == bool(number) and (count.isdecimal() or not count)
    if not right:
        raise RootfsError(
            f"{entry[:80]!r} is no failpoint; NAME=kill, NAME=pause and NAME=errno:EIO are, with @N from hit N on"
        )
    return _Action(what, number, int(count or 1), slot)


def _hit(name: str) -> None:
    _trace(name)
    action = _state.actions.get(name)
    if action is None or _counted(action.slot) < action.first:
        return
    if action.what == "kill":
        _kill()
    if action.what == "errno":
        raise OSError(action.error, os.strerror(action.error))
    while True:
        signal.sigtimedwait((), 3600.0)


def _kill() -> None:
    for process in (*_state.victims, os.getpid()):
        os.kill(process, signal.SIGKILL)


def _counted(slot: int) -> int:
    if _state.counts is None:
        return 0
    count = int(_COUNT.unpack_from(_state.counts, slot * _COUNT.size)[0]) + 1
    _COUNT.pack_into(_state.counts, slot * _COUNT.size, count)
    return count


def _trace(name: str) -> None:
    if not _state.trace:
        return
    descriptor = os.open(_state.trace, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{name} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)

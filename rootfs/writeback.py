"""Early writeback: while layers are unpacked, their filesystem is synced again and again in the background.

The last sync of a layer then has little left to write, whatever else is written on the same filesystem. Rule: nothing
rests on what is done here. Each layer has a descriptor of its own that learns of every failure, and the sync of its
commit decides; errors here are told to nobody.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, Final, NoReturn

from rootfs import child, sandbox, syscalls
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_SECONDS: Final = 0.5
"""How long after the last one, and after the first layer began, the next sync begins."""

_BEGUN: Final = b"+"
_ENDED: Final = b"-"


class Writeback:
    """A process of the helper's that syncs while there is anything to sync; started with the first layer."""

    def __init__(self, root: int) -> None:
        """Sync the filesystem of the directory *root*."""
        self._root = root
        self._told = -1

    def begun(self) -> None:
        """A layer begins to be unpacked; where no process can be had, there is no early writeback."""
        if self._told < 0:
            with contextlib.suppress(OSError):
                self._told = self._start()
        self._tell(_BEGUN)

    def ended(self) -> None:
        """A layer is unpacked, or given up."""
        self._tell(_ENDED)

    def close(self) -> None:
        """End the process; it needs not be waited for."""
        if self._told >= 0:
            os.close(self._told)
            self._told = -1

    def _tell(self, what: bytes) -> None:
        if self._told >= 0:
            with contextlib.suppress(OSError):
                os.write(self._told, what)

    def _start(self) -> int:
        parent = os.getpid()
        own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        heard, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fork() == 0:
                _run(parent, own, heard)
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(own)
            os.close(heard)
        return told


def _run(parent: int, filesystem: int, heard: int) -> NoReturn:
    try:
        child.leave_helper({3: filesystem, 4: heard})
        sandbox.die_with_parent(parent)
        keep_syncing(4, lambda: _sync(3))
    finally:
        os._exit(0)


def _sync(filesystem: int) -> None:
    with contextlib.suppress(OSError):
        failpoint("writeback.syncfs")
        syscalls.syncfs(filesystem)


def keep_syncing(heard: int, sync: Callable[[], None], period_seconds: float = PERIOD_SECONDS) -> None:
    """Call *sync* every *period_seconds* while layers are unpacked; return when the pipe *heard* is closed."""
    layers = 0
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    while True:
        if not poll.poll(period_seconds * 1000 if layers else None):
            sync()
            continue
        said = os.read(heard, 4096)
        if not said:
            return
        layers += said.count(_BEGUN) - said.count(_ENDED)

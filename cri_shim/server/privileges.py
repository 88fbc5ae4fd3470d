"""The daemon without root's powers: it talks to the network and reads what strangers write, and changes no owners.

What needs more is done by the helper, whose zygote is started first (`rootfs.zygote`, which tells why); after that the
daemon and everything that it executes have no capability left. Credentials are read as before: files count only when
they are root's or the daemon's own, and root needs no capability for those; a daemon that is not root, and was given
DAC_READ_SEARCH for root's files, keeps it. Programs that know credentials run as the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.server.give import runtime_root_of
from rootfs import capabilities
from rootfs.errors import HelperFailed
from rootfs.scheduling import Scheduling, cpu_list
from rootfs.zygote import Options, Zygote

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from concurrent.futures import Future

    from cri_shim.config.schema import Config

log = logging.getLogger(__name__)


def options_of(config: Config) -> Options:
    """Return how the helper is run.

    Raises:
        ConfigError: `unpack_cpus` is no list of processors.
    """
    return Options(
        require_sandbox=config.require_sandbox,
        tar_split=config.tar_split,
        runtime=runtime_root_of(config),
        writeback=config.sync == "syncfs",
        scheduling=scheduling_of(config),
    )


def scheduling_of(config: Config) -> Scheduling:
    """Return what the helper may take of the node's processors.

    Raises:
        ConfigError: `unpack_cpus` is no list of processors.
    """
    try:
        return Scheduling(cpu_list(config.unpack_cpus), config.unpack_nice, config.unpack_cgroup)
    except ValueError as error:
        raise ConfigError(f"unpack_cpus: {error}") from None


def without_privileges(config: Config) -> Zygote:
    """Start the zygote of the helper, then give up what only the helper needs. To be called before any thread is made.

    Raises:
        HelperFailed: the zygote cannot be started; something could not be given up, and `require_sandbox` wants it.
    """
    zygote = Zygote.start(os.path.abspath(config.root), options_of(config))
    missing = _give_up(config.socket_gid)
    if missing and config.require_sandbox:
        zygote.close()
        raise HelperFailed(f"the sandbox is required, and the daemon itself lacks {told(missing)}")
    if missing:
        log.warning(f"the daemon cannot give up all privileges that it does not need; it lacks {told(missing)}")
    return zygote


def _give_up(gid: int) -> dict[str, str]:
    _join(gid)
    powerless = capabilities.held() == 0
    missing = capabilities.keep_only(0 if os.geteuid() == 0 else capabilities.DAC_READ_SEARCH)
    if powerless and "no-new-privs" not in missing:
        missing.pop("bounding-set", None)  # an ordinary user has nothing, and can come by nothing
    return missing


def told(missing: Mapping[str, str]) -> str:
    """Name parts of the sandbox with the reasons why they could not be had."""
    return "; ".join(f"{part} ({why})" for part, why in missing.items())


def _join(gid: int) -> None:
    """Become a member of the socket's group, since only a member can give it a file without CAP_CHOWN."""
    if gid != -1 and gid not in (groups := os.getgroups()):
        with contextlib.suppress(OSError):  # told when the socket is made
            os.setgroups([*groups, gid])


@asynccontextmanager
async def ending_with(lost: Future[None]) -> AsyncIterator[None]:
    """Run the block; once *lost* is done, cancel it: without helpers no pull would ever succeed again.

    Raises:
        HelperFailed: that has happened.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    happened = False

    def end() -> None:
        nonlocal happened
        happened = True
        task.cancel()

    def tell(_: Future[None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended first
            loop.call_soon_threadsafe(end)

    lost.add_done_callback(tell)
    try:
        yield
    except asyncio.CancelledError:
        if not happened:
            raise
        task.uncancel()
        raise HelperFailed("the process that starts helpers has died; the daemon ends, to be started anew") from None

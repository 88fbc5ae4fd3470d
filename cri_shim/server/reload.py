"""SIGHUP: the configuration and registries.conf are read again, and put in force whole or not at all.

Reading happens in a thread; what was read is put in force on the event loop, between two steps of whatever runs there;
a pull that is under way asks its next question by the new rules. What is wrong is one ERROR with file and line, and
everything stays as it was. Keys that decide what the daemon *is* (its root, its socket, its executors) count from the
next start, and a warning names those that have changed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ShimError
from cri_shim.executor import DaemonExecutor
from cri_shim.log import fields, set_level

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.config.schema import Config
    from cri_shim.server.notify import Notifier

    Prepare = Callable[[Config], Callable[[], None]]

log = logging.getLogger(__name__)

RELOADED: Final = frozenset(
    {
        *("log_level", "certs_dirs", "insecure", "no_fallback", "mirror_stall_seconds", "progress_seconds"),
        *("bytes_per_second_per_host", "max_bytes_per_second"),
        *("host_proxies", "proxy_ca", "realm_same_site", "foreign_layers"),
        *("containers_dir", "policy_json", "registries_conf"),
    }
)
"""The keys that a reload puts in force."""


class Reload:
    """Reads the configuration again when it is told to.

    `parts` are those who can change: each is given the new configuration in a thread, may raise what is wrong with it,
    and returns what puts it in force.
    """

    def __init__(self, reread: Callable[[], Config], config: Config) -> None:
        """*reread* reads everything that *config*, which is in force, was read from."""
        self._reread = reread
        self._config = config
        self._thread = DaemonExecutor("reload", 1)
        self.parts: list[Prepare] = []

    async def forever(self, asked: asyncio.Event, notifier: Notifier) -> None:
        """Reload each time that *asked* is set, and tell the service manager."""
        while True:
            await asked.wait()
            asked.clear()
            notifier.reloading()
            await self.once()
            notifier.ready()

    async def once(self) -> bool:
        """Reload, and tell whether what was read is in force now."""
        try:
            config, put_in_force = await asyncio.get_running_loop().run_in_executor(self._thread, self._prepared)
        except ShimError as error:
            log.error(f"not reloaded: {error}; what was in force stays in force")
            return False
        except Exception:
            log.exception("not reloaded, and it is a bug; please report it")
            return False
        for act in put_in_force:
            act()
        set_level(config.log_level)
        self._tell(config)
        return True

    def _prepared(self) -> tuple[Config, list[Callable[[], None]]]:
        config = self._reread()
        return config, [prepare(config) for prepare in self.parts]

    def _tell(self, config: Config) -> None:
        changed = [
            key.name
            for key in dataclasses.fields(config)
            if getattr(config, key.name) != getattr(self._config, key.name)
        ]
        waiting = [name for name in changed if name not in RELOADED]
        now = {name: getattr(config, name) for name in changed if name in RELOADED}
        self._config = dataclasses.replace(self._config, **now)
        log.info("reloaded", extra=fields(changed=" ".join(now) or "files only"))
        if waiting:
            log.warning(f"changed in the configuration, and only in force from the next start: {', '.join(waiting)}")

"""Telling the service manager how it goes: the datagrams of sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends states to *address*: a path, or `@` and an abstract name. An empty address means nobody listens.

    *watchdog_seconds* is how long the manager waits for a sign of life before it ends us; 0: for ever.
    """

    def __init__(self, address: str, watchdog_seconds: float = 0.0) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """Make the notifier that the environment asks for."""
        meant = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        microseconds = environ.get("WATCHDOG_USEC", "") if meant else ""
        return cls(environ.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0)

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self) -> None:
        """Tell that calls are answered from now on."""
        self._send("READY=1")

    def status(self, sentence: str) -> None:
        """Tell people, in `systemctl status`, how it goes."""
        self._send(f"STATUS={sentence}")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the end has begun."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as to:
                to.sendto(state.encode(), self._address)
        except OSError as error:  # a daemon serves also when nobody hears that it does
            log.warning(f"the service manager does not hear {state.partition('=')[0]}: {error.strerror}")

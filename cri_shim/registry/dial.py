"""From a name to a connected socket: resolve, judge the addresses, connect to one of them.

The address that was judged is the one connected to, so a name that changes its mind between two lookups gains nothing.
A lookup runs in a thread of its own, because getaddrinfo cannot be interrupted and the caller can.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING

from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.policy import AddressRule, Ip

ADDRESSES = 8  # tried of one name
LOOKUPS = 32  # under way at once, those that hang included
TICK_SECONDS = 0.1  # how late a lookup notices a cancel

Address = tuple[socket.AddressFamily, str, int]
Lookup = "Callable[[str, int], Sequence[Address]]"


def lookup(host: str, port: int) -> Sequence[Address]:
    """Resolve through the system (nsswitch, /etc/hosts); numbers in any spelling included."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys((family, str(sockaddr[0]), port) for family, _, _, _, sockaddr in found))


def unconnected(address: Address) -> socket.socket:
    """Return a socket for *address*, with the options of a long download."""
    made = socket.socket(address[0], socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made


class Dialler:
    """Makes connections. *lookup* and *connect* are the system's, or a test's."""

    def __init__(
        self,
        lookup: Callable[[str, int], Sequence[Address]] = lookup,
        connect: Callable[[socket.socket, Address], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._connect = connect or (lambda made, address: made.connect(address[1:]))
        self._clock = clock
        self._room = threading.BoundedSemaphore(LOOKUPS)

    def dial(
        self,
        host: str,
        port: int,
        *,
        rule: AddressRule,
        seconds: float,
        cancel: Cancel,
        watch: Callable[[socket.socket], None],
    ) -> tuple[socket.socket, Ip]:
        """Connect to *host* within *seconds*; *watch* is given each socket before it is connected.

        Raises:
            HostFailed: The name does not resolve, no address may be asked, or none answers.
            Cancelled: Meanwhile.
        """
        until = self._clock() + seconds
        addresses = self._allowed(host, self._resolve(host, port, until, cancel), rule)
        failure: HostFailed | None = None
        for left, (address, ip) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            slot = max(0.05, (until - self._clock()) / left)
            try:
                return self._to(address, slot, watch), ip
            except OSError as error:
                cancel.check()
                failure = _not_connected(host, address, error, seconds)
        assert failure is not None
        raise failure

    def _to(self, address: Address, seconds: float, watch: Callable[[socket.socket], None]) -> socket.socket:
        made = unconnected(address)
        try:
            made.settimeout(seconds)
            watch(made)
            self._connect(made, address)
        except BaseException:
            made.close()
            raise
        return made

    @staticmethod
    def _allowed(host: str, found: Sequence[Address], rule: AddressRule) -> list[tuple[Address, Ip]]:
        judged = [(address, ipaddress.ip_address(address[1].partition("%")[0])) for address in found]
        allowed = [(address, ip) for address, ip in judged if rule.refusal(ip) is None]
        if not allowed:
            address, ip = judged[0]
            what = f"{host} is" if host == address[1] else f"{host} leads to {ip},"
            raise HostFailed(f"{what} a {rule.refusal(ip)} address, which is not asked", "address")
        return allowed[:ADDRESSES]

    def _resolve(self, host: str, port: int, until: float, cancel: Cancel) -> Sequence[Address]:
        with contextlib.suppress(ValueError):
            ip = ipaddress.ip_address(host)
            return [(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, host, port)]
        if not self._room.acquire(blocking=False):
            raise HostFailed(f"{host} was not looked up: {LOOKUPS} other lookups hang, see the node's DNS", "dns")
        answer: queue.SimpleQueue[Sequence[Address] | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(host, port, answer), name="lookup", daemon=True).start()
        while True:
            cancel.check()
            with contextlib.suppress(queue.Empty):
                return _answered(host, answer.get(timeout=min(TICK_SECONDS, max(0.001, until - self._clock()))))
            if self._clock() >= until:
                raise HostFailed(f"the name {host} was not resolved in time, see the node's DNS", "dns")

    def _ask(self, host: str, port: int, answer: queue.SimpleQueue[Sequence[Address] | Exception]) -> None:
        try:
            answer.put(self._lookup(host, port))
        except Exception as error:  # handed over to the thread that asked
            answer.put(error)
        finally:
            self._room.release()


def _answered(host: str, answer: Sequence[Address] | Exception) -> Sequence[Address]:
    if isinstance(answer, Exception):
        why = answer.args[1] if isinstance(answer, socket.gaierror) and len(answer.args) > 1 else "impossible name"
        raise HostFailed(f"the name {host} could not be resolved: {why}", "dns")
    if not answer:
        raise HostFailed(f"the name {host} has no address", "dns")
    return answer


def _not_connected(host: str, address: Address, error: OSError, seconds: float) -> HostFailed:
    where = f"{host}:{address[2]}" if host == address[1] else f"{host}:{address[2]} ({address[1]})"
    if isinstance(error, ConnectionRefusedError):
        return HostFailed(f"{where} refused the connection", "refused")
    if isinstance(error, TimeoutError):
        return HostFailed(f"{where} did not accept a connection within {seconds:g} s", "timeout")
    return HostFailed(f"{where} could not be reached: {error.strerror or 'no connection'}", "refused")

"""Bytes per second that layers may take: of the whole node, and of each host.

The bytes of every answer to a request for a layer, or for a part of one, come out of the bucket of who was asked and
then out of the node's. Manifests, configs, tokens and HEADs do not: they are small, and a pull that only asks whether
its image is still right must not wait behind gigabytes. A host is who was asked (the registry, or its mirror), also
where it sends us elsewhere for the bytes: its operator's limit is meant.

Time that a connection is made to wait here is no silence of its peer's, and is not counted as one.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from cri_shim.registry.bucket import Bucket
from cri_shim.registry.flow import Flow, Payers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cri_shim.registry.cancel import Cancel

_SECOND: Final = 1e9


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What the operator allows, in bytes per second: in all, and of each host; 0 for no limit."""

    total: int = 0
    per_host: int = 0


UNLIMITED: Final = RateLimits()


@dataclass(slots=True)
class Portion:
    """So many bytes may come now, *waited* seconds after they were asked for; *used* is how many did come."""

    size_bytes: int
    waited: float = 0.0
    used: int = 0


class Rates:
    """See the module. Safe from any thread."""

    def __init__(
        self,
        limits: RateLimits = UNLIMITED,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        """*clock* and *wait* are those of `Bucket`."""
        self._limits = limits
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._node = Bucket(limits.total, clock, wait)
        # A bucket goes with the last download that has a meter of it: a new one begins empty, so nothing is gained.
        self._hosts: WeakValueDictionary[str, Bucket] = WeakValueDictionary()

    def follow(self, limits: RateLimits) -> None:
        """Go by *limits* from now on, for what is under way as well."""
        with self._lock:
            self._limits = limits
            hosts = tuple(self._hosts.values())
        self._node.follow(limits.total)
        for bucket in hosts:
            bucket.follow(limits.per_host)

    def meter(self, host: str, payers: Payers | None = None) -> Meter:
        """Return what the bytes of one download from *host* come through, paid by *payers*, or by itself."""
        with self._lock:
            bucket = self._hosts.get(host)
            if bucket is None:
                bucket = self._hosts[host] = Bucket(self._limits.per_host, self._clock, self._wait)
        return Meter((bucket, self._node), payers or Payers(Flow(host)), self._clock)


class Meter:
    """The way of one blob's bytes through the buckets. Safe from any thread."""

    def __init__(self, buckets: tuple[Bucket, ...], payers: Payers, clock: Callable[[], int]) -> None:
        self._buckets = buckets
        self._payers = payers
        self._clock = clock

    @contextmanager
    def portion(self, most: int, cancel: Cancel) -> Iterator[Portion]:
        """Wait until some of *most* bytes may come; what is not `used` inside is given back.

        Raises:
            Cancelled: Meanwhile.
        """
        payer = self._payers.heaviest
        portion = self._take(payer, most, cancel)
        yield portion
        # Where something was raised inside it is not known how many came: then all count.
        _give_back(self._buckets, payer, portion.size_bytes - portion.used)

    def _take(self, payer: Flow, most: int, cancel: Cancel) -> Portion:
        if not any(bucket.rate for bucket in self._buckets):
            return Portion(most)
        size, begun = most, self._clock()
        with cancel.paused():
            for number, bucket in enumerate(self._buckets):
                try:
                    granted = bucket.take(payer, size, cancel)
                except BaseException:
                    _give_back(self._buckets[:number], payer, size)
                    raise
                _give_back(self._buckets[:number], payer, size - granted)
                size = granted
        return Portion(size, (self._clock() - begun) / _SECOND)


def _give_back(buckets: tuple[Bucket, ...], payer: Flow, unused: int) -> None:
    for bucket in buckets:
        bucket.give_back(payer, unused)

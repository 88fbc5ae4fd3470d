"""The further connections that fetch a blob beside the first, each in a thread of its own.

The first connection decides: it begins alone, and others are made when its host has shown that ranges work, with a
strong validator (RFC 9110, 8.8.1) that every part must carry, and when more comes with them (`growth`). What goes wrong
on one of the others ends that one, and for a while all of them; what it leaves is fetched by those that are left, in
the end by the first, which asks as if it had always been alone and knows what to call a failure. So a host that answers
badly here has lost nothing but its other connections.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self

from cri_shim.errors import Cancelled, ConfigError, ContentRejected, Denied, LimitExceeded, NotFound, Unauthenticated
from cri_shim.registry.cancel import Branch
from cri_shim.registry.connections import Bounds, Connections
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.flow import Flow
from cri_shim.registry.growth import LEAST_BLOB_BYTES, Growth
from cri_shim.registry.rates import Rates
from cri_shim.registry.wire import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.flow import Payers
    from cri_shim.registry.segments import Segment, Segments

SEGMENT_BYTES: Final = 16 << 20
"""What one of several connections asks for at once: little, so that what is behind the unpacker's place comes soon."""

LEAST_SEGMENT_BYTES: Final = 2 << 20
"""And near the end, where all are to be done at the same time."""

STALL_SECONDS: Final = 15.0
"""How long one of several may send nothing."""

_WAITED_SECONDS: Final = 1.0  # then it is looked whether there is any progress at all

# What says something about the host, not about this node; the first connection will be told the same, if it is so.
_REFUSED = (Unauthenticated, Denied, NotFound, ContentRejected, LimitExceeded, ConfigError)

USUAL: Final = Bounds()


class Wants(Protocol):
    """Tells how many connections there should be: see `Growth`."""

    def look(self, now: float, received_bytes: int, rest_bytes: int, running: int) -> int: ...  # noqa: D102
    def failed(self, now: float) -> None: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Several:
    """On which terms a blob may have several connections, and bytes. *growth* and *clock* are for tests to replace."""

    connections: Connections = field(default_factory=Connections)
    bounds: Bounds = USUAL
    rates: Rates = field(default_factory=Rates)
    payers: Payers | None = None
    least_blob_bytes: int = LEAST_BLOB_BYTES
    segment_bytes: int = SEGMENT_BYTES
    growth: Callable[[int], Wants] = Growth
    clock: Callable[[], float] = monotonic


class Workers:
    """See the module. Everything but `received` is for the thread of the first connection."""

    def __init__(self, host: str, segments: Segments, several: Several, whole: Cancel) -> None:
        self._host = host
        self._segments = segments
        self._several = several
        self._flow = several.payers.heaviest if several.payers is not None else Flow(host)
        self._whole = whole
        self._branch = Branch(whole)
        self._growth = several.growth(several.bounds.per_blob)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._wanted = 1
        self._error: BaseException | None = None
        self._fetch: Callable[[Cancel, Segment], None] | None = None
        self._left = ExitStack()
        self.ranges_work = True  # as far as is known

    def __enter__(self) -> Self:
        with ExitStack() as entered:  # a download that is cancelled already leaves again
            entered.enter_context(self._several.connections.first(self._host, self._flow))
            entered.enter_context(self._whole.doing(self._stopped))
            self._left = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._left:
            self.stop()

    def next(self) -> Segment | None:
        """Return what the first connection should fetch now; None when every byte is there.

        Raises:
            ShimError: What one of the others met on this node's side; Cancelled; HostFailed, nobody makes progress.
        """
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                found, alone = self._take(), self._running == 0
                if found is not None or alone:
                    return found
                self._changed.wait(_WAITED_SECONDS)
            self._whole.check()

    @property
    def begun(self) -> bool:
        """Whether there are others, or were, and ranges work as far as is known."""
        return bool(self._threads) and self.ranges_work

    def may_begin(self, fetch: Callable[[Cancel, Segment], None]) -> None:
        """Have *fetch* called for segments in other threads from now on, if the blob is worth it.

        It brings a segment with a request of its own, and raises `NotRanges` where the answer is not exactly that.
        """
        segments = self._segments
        if self._fetch is None and not segments.in_order and segments.size_bytes >= self._several.least_blob_bytes:
            self._fetch = fetch

    def look(self, mine: Segment) -> None:
        """See whether more connections are worth it; *mine* is what the first one is fetching."""
        if self._fetch is None or self._branch.cancelled:
            return
        several, segments = self._several, self._segments
        received = several.connections.received_bytes(self._host)
        rest = segments.size_bytes - segments.present_bytes
        with self._changed:
            self._wanted = self._growth.look(several.clock(), received, rest, self._running + 1)
            missing = self._wanted - 1 - self._running
        for _ in range(missing):
            if not several.connections.another(self._host, several.bounds, self._flow):
                return
            segments.cut(mine, several.segment_bytes)
            if not self._begin():
                self.failed()
                return

    def received(self, size_bytes: int) -> None:
        """Note that so many bytes have come, for anybody."""
        self._several.connections.count(self._host, size_bytes)

    def failed(self) -> None:
        """Have one connection for a while: those that are under way finish what they are at."""
        with self._changed:
            self._growth.failed(self._several.clock())
            self._wanted = 1

    def stop(self) -> None:
        """Have one connection from now on, and no other when this returns; what they had is anybody's again."""
        with self._changed:
            self._growth.stop()
            self._wanted, self.ranges_work = 1, False
        self._branch.cancel()
        for thread in self._threads:
            thread.join()

    def _take(self) -> Segment | None:
        several = self._several
        if self._wanted == 1:
            return self._segments.take()
        least = min(LEAST_SEGMENT_BYTES, several.segment_bytes)
        return self._segments.take(self._wanted, most_bytes=several.segment_bytes, least_bytes=least)

    def _begin(self) -> bool:
        """Have one more at work; False where there can be no further thread."""
        with self._changed:
            self._running += 1
            name = f"{threading.current_thread().name}+{self._running}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the service has as many tasks as it may
            with self._changed:
                self._running -= 1
            self._several.connections.close(self._host, self._flow)
            return False
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return True

    def _work(self) -> None:
        try:
            while (segment := self._another()) is not None:
                self._bring(segment)
        finally:
            self._several.connections.close(self._host, self._flow)

    def _another(self) -> Segment | None:
        """Return what one of the others should fetch now, None when it is to end, and does not count any more."""
        with self._changed:
            leaves = self._branch.cancelled or self._running > self._wanted - 1 or self._must_yield()
            segment = None if leaves else self._take()
            if segment is None:
                self._running -= 1
            self._changed.notify_all()
            return segment

    def _must_yield(self) -> bool:
        return self._several.connections.must_yield(self._host, self._several.bounds, self._flow)

    def _bring(self, segment: Segment) -> None:
        assert self._fetch is not None
        try:
            self._fetch(self._branch, segment)
        except HostFailed:
            self.failed()
        except Cancelled:
            self._branch.cancel()
        except _REFUSED:
            self._give_up()
        except BaseException as error:
            self._error = error
            self._give_up()
        finally:
            self._segments.give_back(segment)

    def _give_up(self) -> None:
        with self._changed:
            self._growth.stop()
            self._wanted, self.ranges_work = 1, False

    def _stopped(self) -> None:
        self._branch.cancel()
        with self._changed:
            self._changed.notify_all()


class NotRanges(ContentRejected):
    """A host that was asked for a part of a blob sent something else."""


ALONE = Several(bounds=Bounds(per_blob=1))

"""A token bucket that flows share by weight: so many bytes per second, and no more than a bound at once.

Bytes are granted before they are read, a portion at a time, so that in any span of time no more pass than the rate
allows and the bound besides; what was granted and not used is given back. Whose portion is next is decided by
start-time fair queueing (Goyal, Vin, Cheng, 1996): each flow has a tag that grows by bytes through weight, the lowest
tag is served, and a flow that comes late begins at the tag that is being served: it makes up for nothing, and waits
for nobody's past. So a flow's share depends on its weight and not on how many connections ask for it, what one flow
leaves the others use, and even the lightest is served in its turn.

`Portions` decides, without a thread, on a clock that it is given. `Bucket` is where threads wait: each on an event of
its own, and only the one whose turn is next with an end to it. All of it is counted in whole numbers: who has waited
for as long as it was told to has enough.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.flow import Flow

LARGEST_PORTION_BYTES: Final = 256 << 10
SMALLEST_BURST_BYTES: Final = 16 << 10
BURSTS_PER_SECOND: Final = 10
TAGS: Final = 1024
"""So many tags are kept before those that mean nothing any more are dropped."""

_SECOND: Final = 1_000_000_000  # in nanoseconds; a byte costs so many tokens, and each nanosecond brings *rate* of them
_TAG_OF_BYTE: Final = 1 << 20  # at weight 1


def burst_bytes(rate: int) -> int:
    """Return how many bytes may pass at once under *rate*: those of a tenth of a second, at least 16 KiB."""
    return max(SMALLEST_BURST_BYTES, rate // BURSTS_PER_SECOND)


@dataclass(eq=False, slots=True)
class Ticket:
    """One connection that waits for a portion of at most *most* bytes; *granted* is 0 until it has one."""

    flow: Flow
    most: int
    order: int
    granted: int = 0
    news: threading.Event = field(default_factory=threading.Event)


class Portions:
    """Who gets the next portion, and when. Not safe from several threads; without a rate everything is granted.

    It begins with nothing: nobody gains by having a new one.
    """

    def __init__(self, rate: int, clock: Callable[[], int]) -> None:
        """*rate* is in bytes per second, 0 for none; *clock* tells nanoseconds."""
        self.rate = rate
        self._clock = clock
        self._tokens = 0
        self._filled = clock()
        self._orders = 0
        self._virtual = 0
        self._tags: dict[Flow, int] = {}
        self._waiting: dict[Flow, deque[Ticket]] = {}

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return sum(map(len, self._waiting.values()))

    def follow(self, rate: int) -> None:
        """Go by another *rate* from now on; a bound that has become smaller holds at once."""
        self._fill()
        if not self.rate:
            self._tokens = 0  # what passed without a rate has used up any bound
        self.rate = rate
        self._add(0)

    def enter(self, flow: Flow, most: int) -> Ticket:
        """Line up for *flow*."""
        self._fill()
        if not self._waiting and self._tokens == self._full():
            self._forget()
        self._orders += 1
        ticket = Ticket(flow, most, self._orders)
        if flow not in self._waiting:
            self._tags[flow] = max(self._tags.pop(flow, 0), self._virtual)
            self._waiting[flow] = deque()
        self._waiting[flow].append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up waiting, and what was granted."""
        queue = self._waiting.get(ticket.flow)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            self._drop_if_idle(ticket.flow)
        self.give_back(ticket.flow, ticket.granted)

    def give_back(self, flow: Flow, unused: int) -> None:
        """Return *unused* bytes of what was granted to *flow*."""
        if unused and self.rate:
            self._fill()
            self._add(unused * _SECOND)
            if flow in self._tags:
                self._tags[flow] -= unused * _TAG_OF_BYTE // flow.weight

    def serve(self) -> list[Ticket]:
        """Grant what can be granted now, and return whom."""
        self._fill()
        served = []
        while (ticket := self.first()) is not None:
            portion = self._portion(ticket)
            if self.rate and portion * _SECOND > self._tokens:
                break
            self._grant(ticket, portion)
            served.append(ticket)
        return served

    def first(self) -> Ticket | None:
        """Return the ticket whose turn is next."""
        flow = min(self._waiting, key=lambda flow: (self._tags[flow], self._waiting[flow][0].order), default=None)
        return None if flow is None else self._waiting[flow][0]

    def wait_ns(self, ticket: Ticket) -> int:
        """Return in how many nanoseconds there is enough for *ticket*, if it is the first."""
        if not self.rate:
            return 0
        missing = self._portion(ticket) * _SECOND - self._tokens
        return max(0, -(-missing // self.rate) - (self._clock() - self._filled))

    def _portion(self, ticket: Ticket) -> int:
        if not self.rate:
            return ticket.most
        return min(ticket.most, LARGEST_PORTION_BYTES, burst_bytes(self.rate))

    def _grant(self, ticket: Ticket, portion: int) -> None:
        flow = ticket.flow
        if self.rate:
            self._tokens -= portion * _SECOND
        self._virtual = self._tags[flow]
        self._tags[flow] += portion * _TAG_OF_BYTE // flow.weight
        ticket.granted = portion
        self._waiting[flow].popleft()
        self._drop_if_idle(flow)

    def _drop_if_idle(self, flow: Flow) -> None:
        if self._waiting[flow]:
            return
        del self._waiting[flow]
        if len(self._tags) > TAGS:  # a tag that is behind says no more than that the flow is new
            kept = self._tags.items()
            self._tags = {one: tag for one, tag in kept if tag > self._virtual or one in self._waiting}
            if not self._waiting:
                self._forget()

    def _forget(self) -> None:
        """Begin anew with who had how much: nobody was kept from anything for a while."""
        self._virtual = max(self._tags.values(), default=self._virtual)
        self._tags.clear()

    def _fill(self) -> None:
        now = self._clock()
        self._add((now - self._filled) * self.rate)
        self._filled = now

    def _add(self, tokens: int) -> None:
        self._tokens = min(self._tokens + tokens, self._full())

    def _full(self) -> int:
        return burst_bytes(self.rate) * _SECOND


class Bucket:
    """See the module. Safe from any thread."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        """*clock* tells nanoseconds; *wait* waits for an event, at most so many seconds; None is without end."""
        self._portions = Portions(rate, clock)
        self._lock = threading.Lock()
        self._wait = wait
        self._next: Ticket | None = None

    @property
    def rate(self) -> int:
        """Bytes per second, 0 for no limit."""
        return self._portions.rate

    @property
    def waiting(self) -> int:
        """How many connections wait."""
        with self._lock:
            return self._portions.waiting

    def follow(self, rate: int) -> None:
        """Go by another *rate* from now on, those who wait as well."""
        with self._lock:
            self._portions.follow(rate)
            self._next = None  # it waits for another time now
            self._serve()

    def take(self, flow: Flow, most: int, cancel: Cancel) -> int:
        """Wait for a portion of at most *most* bytes, which are some, for *flow*, and return its size.

        Raises:
            Cancelled: Meanwhile; nothing was taken.
        """
        if not self._portions.rate:
            return most
        with self._lock:
            ticket = self._portions.enter(flow, most)
            self._serve()
        try:
            with cancel.doing(ticket.news.set):
                while not ticket.granted:
                    self._await_news(ticket, cancel)
        except BaseException:
            with self._lock:
                self._portions.leave(ticket)
                self._serve()
            raise
        return ticket.granted

    def give_back(self, flow: Flow, unused: int) -> None:
        """Return *unused* bytes of what was granted to *flow*."""
        if unused:
            with self._lock:
                self._portions.give_back(flow, unused)
                self._serve()

    def _await_news(self, ticket: Ticket, cancel: Cancel) -> None:
        with self._lock:
            ticket.news.clear()
            cancel.check()
            if ticket.granted:
                return
            seconds = self._portions.wait_ns(ticket) / _SECOND if self._next is ticket else None
        left = cancel.remaining_seconds()
        self._wait(ticket.news, left if seconds is None else min(seconds, seconds if left is None else left))
        with self._lock:
            self._serve()

    def _serve(self) -> None:
        """Wake who was served, and who has become the next: nobody else has to look."""
        for ticket in self._portions.serve():
            ticket.news.set()
        first = self._portions.first()
        if first is not None and first is not self._next:
            first.news.set()
        self._next = first
